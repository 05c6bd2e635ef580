"""Text by Specific Character Set: the standard's examples, pydicom's decoding, and bad input."""

import orjson
import pydicom.charset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from plainpacs.archive.dicom.charset import DEFAULT, REPLACEMENT, character_set, codec_of

# PS3.3 Tables C.12-2 and C.12-5, with text of each.
SINGLE = {
    "ISO_IR 100": "Buc^Jérôme",
    "ISO_IR 101": "Wałęsa^Łódź",
    "ISO_IR 109": "Ĉapelo^Ħal",
    "ISO_IR 110": "Ķēniņš^Ģirts",
    "ISO_IR 144": "Люкceмбypг",  # noqa: RUF001 - Cyrillic on purpose
    "ISO_IR 127": "قباني^لنزار",
    "ISO_IR 126": "Διονυσιος",
    "ISO_IR 138": "שרון^דבורה",
    "ISO_IR 148": "Çavuşoğlu",
    "ISO_IR 13": "ﾔﾏﾀﾞ^ﾀﾛｳ",
    "ISO_IR 166": "นามสกุล",
    "ISO_IR 192": "Wang^XiaoDong=王^小东=",
    "GB18030": "Wang^XiaoDong=王^小东=𠮷",
    "GBK": "王^小东",
}
CODECS = {
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 127": "iso8859_6",
    "ISO_IR 126": "iso8859_7",
    "ISO_IR 138": "iso8859_8",
    "ISO_IR 148": "iso8859_9",
    "ISO_IR 203": "iso8859_15",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 166": "tis_620",
    "ISO_IR 192": "utf_8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
# Tables C.12-3 and C.12-4: term, text, what an encoder writes between two delimiters.
EXTENSIONS = {
    **{f"ISO 2022 IR {term[7:]}": text for term, text in SINGLE.items() if term[7:].isdigit()},
    "ISO 2022 IR 87": "山田^太郎",
    "ISO 2022 IR 159": "丂^丄",
    "ISO 2022 IR 149": "洪^吉洞",
    "ISO 2022 IR 58": "张^王",
}
del EXTENSIONS["ISO 2022 IR 192"]


@pytest.mark.parametrize("term", SINGLE)
def test_one_set(term: str) -> None:
    text = SINGLE[term]
    raw = text.encode(CODECS[term])
    assert character_set([term]).decode(raw, name=True) == text
    assert pydicom.charset.decode_bytes(
        raw, pydicom.charset.convert_encodings(term), TEXT_VR_DELIMS
    ) == (text)


def test_latin_9_that_pydicom_does_not_know() -> None:
    assert character_set(["ISO_IR 203"]).decode(b"\xa4 \xbd") == "€ œ"
    assert character_set(["", "ISO 2022 IR 203"]).decode(b"\x1b-b\xa4") == "€"


# The examples of PS3.5 annexes H, I and K, as bytes.
@pytest.mark.parametrize(
    ("terms", "raw", "text"),
    [
        (
            ["", "ISO 2022 IR 87"],
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (
            ["ISO 2022 IR 13", "ISO 2022 IR 87"],
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J="
            b"\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        ),
        (
            ["", "ISO 2022 IR 149"],
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7="
            b"\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        (
            ["", "ISO 2022 IR 58"],
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
            "Zhang^XiaoDong=张^小东=",
        ),
        (
            ["ISO 2022 IR 6", "ISO 2022 IR 100", "ISO 2022 IR 126"],
            b"Dionysios is \x1b-F\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2, J\x1b-A\xe9r\xf4me",
            "Dionysios is Διονυσιος, Jérôme",
        ),
        (
            ["", "ISO 2022 IR 149"],
            b"\x1b$)CThe 1st line includes \xb1\xe6\xb5\xbf.\r\n"
            b"\x1b$)CThe 2nd line includes \xb1\xe6\xb5\xbf, too.\r\nThe 3rd line.",
            "The 1st line includes 길동.\r\nThe 2nd line includes 길동, too.\r\nThe 3rd line.",
        ),
    ],
)
def test_code_extensions(terms: list[str], raw: bytes, text: str) -> None:
    assert character_set(terms).decode(raw, name=True) == text


@pytest.mark.parametrize("term", EXTENSIONS)
def test_each_extension_as_pydicom_writes_it(term: str) -> None:
    encodings = pydicom.charset.convert_encodings(["ISO 2022 IR 6", term])
    text = EXTENSIONS[term]
    parts = [pydicom.charset.encode_string(part, encodings) for part in text.split("^")]
    if term == "ISO 2022 IR 58":  # pydicom writes no escape sequence for this one
        parts = [b"\x1b$)A" + part for part in parts]
    assert character_set(["ISO 2022 IR 6", term]).decode(b"^".join(parts), name=True) == text


@pytest.mark.parametrize("terms", [["ISO 2022 IR 6", "ISO 2022 IR 87"], ["ISO_IR 13"]])
@given(text=st.text(alphabet="AZ az09.,山田太郎やまだたろう", max_size=40))
def test_japanese_is_read_as_pydicom_reads_it(terms: list[str], text: str) -> None:
    encodings = pydicom.charset.convert_encodings(terms)
    raw = text.encode("shift_jis") if len(terms) == 1 else text.encode("iso2022_jp")
    ours = character_set(terms).decode(raw)
    assert ours == pydicom.charset.decode_bytes(raw, encodings, TEXT_VR_DELIMS) == text


@given(
    family=st.text(alphabet=[chr(c) for c in range(0xAC00, 0xAC80)] + list("abc"), max_size=8),
    given_name=st.text(alphabet="홍길동洪吉abc ", max_size=8),
)
def test_korean_names_are_read_as_pydicom_reads_them(family: str, given_name: str) -> None:
    terms = ["", "ISO 2022 IR 149"]
    text = f"{family}^{given_name}"
    # Python composes some syllables of four characters, which CP949, their superset, has as one.
    encodable = "".join(c for c in text if 0 < len(c.encode("euc_kr", "ignore")) < 3)
    raw = b"^".join(b"\x1b$)C" + part.encode("euc_kr") for part in encodable.split("^"))
    encodings = pydicom.charset.convert_encodings(terms)
    ours = character_set(terms).decode(raw, name=True)
    assert ours == pydicom.charset.decode_bytes(raw, encodings, PN_DELIMS) == encodable


def test_second_bytes_that_look_like_delimiters() -> None:
    text = "乗^誠"
    for term in ("GB18030", "GBK"):
        raw = text.encode(CODECS[term])
        assert character_set([term]).decode(raw, name=True) == text
    # 5C and 5E as second bytes, 5C first of all: a backslash would split an attribute in two.
    raw = b"\x81\x5c\x81\x5e\x81\x40"
    assert character_set(["GB18030"]).decode(raw, name=True) == "乗乛丂"
    # All three delimiters inside two-byte characters of JIS X 0208.
    assert character_set(["", "ISO 2022 IR 87"]).decode(b"\x1b$B5\\0^0=\x1b(B", name=True) == (
        (b"\x1b$B5\\0^0=\x1b(B").decode("iso2022_jp")
    )


def test_a_delimiter_brings_the_first_set_back() -> None:
    latin_greek = character_set(["ISO 2022 IR 100", "ISO 2022 IR 126"])
    assert latin_greek.decode(b"\x1b-F\xc4\\\xc4") == "Δ\\Ä"
    assert latin_greek.decode(b"\x1b-F\xc4\r\n\xc4") == "Δ\r\nÄ"
    assert latin_greek.decode(b"\x1b-F\xc4^\xc4", name=True) == "Δ^Ä"
    assert latin_greek.decode(b"\x1b-F\xc4^\xc4") == "Δ^Δ"  # no delimiter but in names
    assert latin_greek.decode(b"\x1b-F\xc4=\xc4", name=True) == "Δ=Ä"


@pytest.mark.parametrize(
    "misspelt",
    ["ISO-IR 100", "ISO_IR_100", "iso_ir 100", "ISO IR 100", "ISO_IR100", "ISO 2022 IR 100",
     "ISO 2022_IR_100", "ISO-2022-IR-100", "ISO_2022_IR_100", "ISO_IR 100 ", "LATIN1",
     "latin_1", "ISO8859-1"],
)  # fmt: skip
def test_misspelt_names(misspelt: str) -> None:
    # Bytes that are valid UTF-8 too, so that the guess for no set at all would show.
    assert character_set([misspelt]).decode(b"\xc3\xa4") == "Ã¤"


@pytest.mark.parametrize("misspelt", ["UTF-8", "utf8", "ISO_IR_192", "ISO 2022 IR 192"])
def test_misspelt_unicode(misspelt: str) -> None:
    assert character_set([misspelt]).decode(b"\xc3\xa4\xff") == "ä" + REPLACEMENT


@pytest.mark.parametrize("misspelt", ["ISO 2022 GBK", "gbk", "GB18030", "GB-18030"])
def test_misspelt_chinese(misspelt: str) -> None:
    assert character_set([misspelt]).decode("王小东".encode("gbk")) == "王小东"


@pytest.mark.parametrize(
    ("term", "codec", "text"),
    [
        ("CP936", "gbk", "王^小东"),
        ("GB18030-2000", "gb18030", "王^𠮷"),
        ("GB2312", "gbk", "陈^喆"),
        ("ISO_IR 58", "gbk", "朱^镕基"),
        ("BIG5", "cp950", "張^偉"),
        ("Big5-HKSCS", "big5hkscs", "張^偉"),
        ("KS_C_5601-1987", "cp949", "똠^방각하"),
        ("EUC-KR", "cp949", "쓩^뷁"),
        ("SJIS", "cp932", "髙橋^太郎"),
        ("x-sjis", "cp932", "山﨑^①"),
        ("WINDOWS-31J", "cp932", "髙橋^太郎"),
        ("EUC-JP", "euc_jp", "山田^太郎"),
        ("WINDOWS-1251", "cp1251", "Иванов^Иван"),
        ("CP1253", "cp1253", "Άννα"),
        ("KOI8-R", "koi8_r", "Иванов^Иван"),
        ("ISO-8859-5", "iso8859_5", "Иванов^Иван"),
        ("ISO8859-7", "iso8859_7", "Διονυσιος"),
        ("TIS-620", "tis_620", "นามสกุล"),
        ("windows-874", "cp874", "นามสกุล"),
    ],
)
def test_what_vendors_call_encodings(term: str, codec: str, text: str) -> None:
    assert character_set([term]).decode(text.encode(codec), name=True) == text


@pytest.mark.parametrize("term", ["UTF-16", "hz", "idna", "punycode", "unicode_escape", "cp037"])
def test_what_a_data_set_cannot_be_in(term: str) -> None:
    assert codec_of(term) is None


@pytest.mark.parametrize(
    ("terms", "codec", "text"),
    [
        (["", "ISO 2022 IR 58"], "gbk", "王^小东"),
        (["ISO 2022 IR 6", "ISO 2022 IR 58"], "gbk", "陈^喆"),
        (["", "ISO 2022 IR 149"], "cp949", "똠^방각하"),
        (["ISO 2022 IR 100", "ISO 2022 IR 58"], "gbk", "王^小东"),
        (["", "ISO 2022 IR 87", "ISO 2022 IR 13"], "cp932", "山田^太郎"),
        (["", "ISO 2022 IR 100"], "latin_1", "Jérôme"),
        (["ISO 2022 IR 100", "ISO 2022 IR 58"], "latin_1", "Jérôme^Äpfel"),
    ],
)
def test_text_without_the_escape_sequence_that_it_should_have(
    terms: list[str], codec: str, text: str
) -> None:
    assert character_set(terms).decode(text.encode(codec), name=True) == text


def test_kanji_of_nec_and_ibm() -> None:
    japanese = character_set(["", "ISO 2022 IR 87"])
    raw = b"Takahashi^Taro=\x1b$B|b66\x1b(B^\x1b$BB@O:\x1b(B"
    assert japanese.decode(raw, name=True) == "Takahashi^Taro=髙橋^太郎"
    assert japanese.decode(b"\x1b$B-!\x1b(B") == "①"  # row 13
    assert japanese.decode(b"\x1b$By!;3\x7e\x7e\x1b(B") == f"纊山{REPLACEMENT}"  # row 89


@pytest.mark.parametrize(
    "terms", [[], [""], ["ISO_IR 6"], ["ISO 2022 IR 6"], ["nonsense"], ["rot13"]]
)
def test_without_a_set(terms: list[str]) -> None:
    chars = character_set(terms)
    assert chars.decode("Müller".encode()) == "Müller"
    assert chars.decode("Müller".encode("latin_1")) == "Müller"
    assert chars.decode(b"\xed\xa0\x80") == "í\xa0\x80"  # a lone surrogate is not UTF-8


def test_further_values_beside_unicode_do_not_count() -> None:
    assert character_set(["ISO_IR 192", "ISO 2022 IR 87"]).decode("é\x1b$B".encode()) == "é\x1b$B"
    assert character_set(["GB18030", "ISO 2022 IR 149"]).decode("王".encode("gbk")) == "王"


def test_a_set_in_g1_ends_a_two_byte_one_in_g0() -> None:
    japanese = character_set(["ISO 2022 IR 13", "ISO 2022 IR 87"])
    assert japanese.decode(b"\x1b$B;3\x1b)I\xd4^A", name=True) == "山ﾔ^A"


def test_escapes_that_are_not_declared_are_followed() -> None:
    assert DEFAULT.decode(b"\x1b$B;3ED\x1b(B") == "山田"


def test_what_cannot_be_decoded_is_replaced() -> None:
    assert character_set(["ISO_IR 127"]).decode(b"a\xa1b") == f"a{REPLACEMENT}b"
    assert DEFAULT.decode(b"a\x1b%Zb") == f"a{REPLACEMENT}%Zb"
    assert DEFAULT.decode(b"\x1b$B;3E") == f"山{REPLACEMENT}"
    assert DEFAULT.decode(b"x\x1b") == f"x{REPLACEMENT}"


ANY_TERM = st.sampled_from([*CODECS, *EXTENSIONS, "", "nonsense"])
ESCAPES = [b"\x1b$B", b"\x1b$(D", b"\x1b(B", b"\x1b(J", b"\x1b)I", b"\x1b-A", b"\x1b-F", b"\x1b$)C",
           b"\x1b$)A", b"\x1b", b"^", b"=", b"\\", b"\r\n"]  # fmt: skip
ANY_BYTES = st.one_of(
    st.binary(max_size=60),
    st.lists(st.one_of(st.sampled_from(ESCAPES), st.binary(max_size=6)), max_size=12).map(b"".join),
)


@given(terms=st.lists(ANY_TERM, max_size=3), raw=ANY_BYTES, name=st.booleans())
def test_any_bytes_become_text_that_json_can_hold(terms: list[str], raw: bytes, name: bool) -> None:
    text = character_set(terms).decode(raw, name=name)
    assert orjson.loads(orjson.dumps(text)) == text
    assert character_set(terms).decode(raw, name=name) == text


@given(term=ANY_TERM, text=st.text(alphabet=[chr(c) for c in range(128) if c != 27]))
def test_ascii_stands_for_itself_in_every_set(term: str, text: str) -> None:
    assert character_set([term]).decode(text.encode("ascii")) == text


def test_all_of_gb18030_s_four_byte_range_holds_no_surrogate() -> None:
    chars = character_set(["GB18030"])
    raw = b"".join(
        bytes((a, b, c, d))
        for a in (0x82, 0x83, 0x84)
        for b in range(0x30, 0x3A)
        for c in range(0x81, 0xFF)
        for d in range(0x30, 0x3A)
    )
    chars.decode(raw).encode()
