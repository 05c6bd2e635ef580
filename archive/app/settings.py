"""Every setting, declared once: its name, type, default, what it may be, and its words.

A value comes from the flag, else the variable ``PLAINPACS_<NAME>``, else the TOML file given with
``--config`` (or ``$PLAINPACS_CONFIG``, else a ``settings_file``), else the default. All are
validated together, once, into the frozen ``Settings``; an unknown key is an error that names the
nearest known one. A child process gets them all, as one document of JSON.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import click

from plainpacs.archive.app import setting_values as values
from plainpacs.archive.app import settings_file
from plainpacs.archive.app.hook_command import INSTANCE_PLACES, STUDY_PLACES
from plainpacs.archive.dicom.charset import use_defaults
from plainpacs.archive.errors import BadSettings

F = TypeVar("F", bound=Callable[..., Any])

DOCUMENT = "PLAINPACS_SETTINGS"
"""The variable in which a command that ``serve`` runs finds the settings of ``serve``."""

# Read by the command line and by the tests, not settings of their own.
_OTHER_VARIABLES = ("PLAINPACS_ARCHIVE", "PLAINPACS_CONFIG", DOCUMENT)
_TEST_VARIABLES = "PLAINPACS_TEST_"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is known of one setting. ``parse`` takes text (or a TOML value), raises ValueError."""

    name: str
    default: Any
    parse: Callable[[Any], Any]
    metavar: str
    help: str
    switch: bool
    """On the command line it is ``--name`` for on and ``--no-name`` for off."""
    reloaded: bool
    """A SIGHUP changes it while ``serve`` runs; the others hold from the next start."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PLAINPACS_" + self.name.upper()


def _setting(
    default: object,
    parse: Callable[[Any], Any],
    metavar: str,
    help_: str,
    *,
    switch: bool = False,
    reloaded: bool = False,
) -> Any:
    """A row of the table below."""
    return field(default=default, metadata={"row": (parse, metavar, help_, switch, reloaded)})


# fmt: off
@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force. Times in seconds, lengths in bytes."""

    # Who we are
    aet: tuple[str, ...] = _setting(("DRDCM",), values.ae_titles, "A,B", "our AE titles")
    bind: str = _setting("", values.text, "ADDRESS", "address to listen on (all)")
    port: int = _setting(11112, values.whole(0, 65535), "PORT",
        "port to listen on; 0 lets the system pick")

    # Who may send and query
    called_ae: str = _setting("ours", values.choice("ours", "any"), "ours|any",
        "called AE titles accepted", reloaded=True)
    calling_ae: tuple[str, ...] = _setting((), values.several(values.ae_title), "A,B",
        "calling AE titles allowed (all)", reloaded=True)
    allow_peers: tuple[str, ...] = _setting((), values.several(values.network), "CIDR,…",
        "networks peers may be in (all)", reloaded=True)
    ae_addresses: tuple[str, ...] = _setting((), values.ae_addresses, "AE=CIDR,…",
        "calling AE titles that may come from these addresses only (none)", reloaded=True)
    max_associations: int = _setting(64, values.whole(1, 10000), "N",
        "associations at once", reloaded=True)
    max_associations_per_peer: int = _setting(0, values.whole(0, 10000), "N",
        "associations at once from one address; 0: half of --max-associations", reloaded=True)
    query_retrieve: str = _setting("nodes", values.choice("any", "nodes", "off"), "any|nodes|off",
        "who may query and retrieve (C-FIND, C-MOVE, C-GET): all who may associate; this "
        "machine and the --nodes; nobody", reloaded=True)
    strict_queries: str = _setting("off", values.choice("on", "off"), "on|off",
        "refuse queries and retrieves that the standard does not allow: without the unique keys "
        "above, with levels in lower case, by other keys", switch=True, reloaded=True)

    # TLS
    tls_cert: str = _setting("", values.text, "FILE",
        "our certificate, and its chain, in PEM; serves TLS (no TLS)", reloaded=True)
    tls_key: str = _setting("", values.text, "FILE",
        "the certificate's private key, if not in the same file", reloaded=True)
    tls_ca: str = _setting("", values.text, "FILE",
        "certificates, in PEM, that sign those of peers, or peers' own", reloaded=True)
    tls_verify: str = _setting("off", values.choice("on", "off"), "on|off",
        "refuse peers that have no certificate by --tls-ca", switch=True, reloaded=True)

    # Who is elsewhere
    nodes: tuple[str, ...] = _setting((), values.nodes, "AET@HOST:PORT,…",
        "applications elsewhere: who may query, what C-MOVE may send to, storage "
        "commitment reports to, and commands call by name (none); with TLS: "
        "AET@HOST:PORT/tls", reloaded=True)

    # What may be sent
    refuse_sop_class: tuple[str, ...] = _setting((), values.several(values.uid), "UID,…",
        "SOP Classes refused (none)")
    max_pdu: int = _setting(1 << 20, values.whole(4096, 1 << 27), "BYTES",
        "longest PDU we announce to take")
    pdu_timeout: float = _setting(30.0, values.seconds, "SECONDS",
        "time for a PDU to arrive, from its first byte")
    idle_timeout: float = _setting(300.0, values.seconds, "SECONDS",
        "abort an association after this much silence")

    # How it is kept
    sync: str = _setting("on", values.choice("on", "off"), "on|off",
        "off: 0000 outlives a crash of plainpacs but not of the machine")
    digest: str = _setting("blake3", values.choice("blake3", "sha256"), "NAME",
        "digest kept: blake3 or sha256")
    on_conflict: str = _setting("keep", values.choice("keep", "replace"), "keep|replace",
        "other bytes under a stored UID: kept aside, or published (the first is kept aside)")
    default_charset: tuple[str, ...] = _setting((), values.default_charsets, "CHARSET,AE=CHARSET,…",
        "character set of text that names none, of all and by calling AE title: GBK, "
        "CT1=ISO_IR 166 (UTF-8, else ISO_IR 100)")
    reserve: str = _setting("1G,2%", values.reserve, "SIZE",
        "space kept free: 500M, 2%, 0, or 1G,2% (the smaller)")

    # What is done with what came
    on_study_settled: str = _setting("", values.hook(STUDY_PLACES), "COMMAND",
        "command to run when a study has had no new instance for --settle-seconds; "
        "{path}, {StudyInstanceUID} … are substituted (none)")
    on_instance: str = _setting("", values.hook(INSTANCE_PLACES), "COMMAND",
        "command to run for each new instance (none)")
    settle_seconds: float = _setting(60.0, values.seconds, "SECONDS",
        "time without a new instance after which a study is settled")
    hooks_at_once: int = _setting(2, values.whole(1, 64), "N", "commands that run at once")

    # How long it is kept
    retention: tuple[str, ...] = _setting((), values.retention, "NAME=RULE,…",
        "rules by which studies are removed: age>5y, stored>90d, free<200G or total>4T, and TERMs "
        "as of `ls` (none)")
    retention_hour: int = _setting(3, values.whole(0, 23), "HOUR",
        "hour of the day at which `serve` applies them, local time")
    retention_most: int = _setting(100, values.whole(1, 1_000_000), "N",
        "studies that a run removes at most")
    retention_purge: str = _setting("off", values.choice("on", "off"), "on|off",
        "erase them instead of moving them to the trash", switch=True)
    trash_days: int = _setting(0, values.whole(0, 36500), "DAYS",
        "erase from the trash what was removed so many days ago; 0: never")

    # Where it is shared
    node: str | None = _setting(None, values.node, "NAME",
        "this writer's own name, on a shared file system")

    # The service
    receivers: int = _setting(0, values.whole(0, 64), "N",
        "receiver processes; 0: one a core, up to four")
    log_level: str = _setting("info", values.choice("debug", "info", "warning", "error"), "LEVEL",
        "lowest level that is logged")
    log_format: str = _setting("text", values.choice("text", "json"), "text|json",
        "json: one object a line")
    metrics_port: int | None = _setting(None, values.whole(0, 65535), "PORT",
        "HTTP /metrics and /healthz (none)")
    metrics_bind: str = _setting("127.0.0.1", values.text, "ADDRESS", "address of the metrics port")

    # In a browser
    web: int | None = _setting(None, values.whole(0, 65535), "PORT",
        "study list and DICOMweb for browsers (none)")
    web_bind: str = _setting("127.0.0.1", values.text, "ADDRESS", "address of the web server")
    web_hosts: tuple[str, ...] = _setting((), values.several(values.text), "NAME,…",
        "names by which browsers reach it, besides localhost")
    web_users: str = _setting("", values.text, "FILE",
        "who may read: name:password lines as `htpasswd -B` writes them")
    web_proxies: tuple[str, ...] = _setting((), values.several(values.network), "CIDR,…",
        "addresses of reverse proxies whose headers count")
    web_user_header: str = _setting("", values.text, "NAME",
        "header in which a proxy of --web-proxies says who signed in")
    web_origins: tuple[str, ...] = _setting((), values.several(values.text), "URL,…",
        "other sites whose pages may read (CORS)")
    web_open: str = _setting("off", values.choice("on", "off"), "on|off",
        "serve other addresses than this machine's without a password", switch=True)
    web_stow: str = _setting("off", values.choice("on", "off"), "on|off",
        "let programs store by STOW-RS", switch=True)
    ohif: str = _setting("", values.text, "DIR", "the viewer OHIF, unpacked there from npm (none)")
# fmt: on


TABLE = tuple(Declaration(one.name, one.default, *one.metadata["row"]) for one in fields(Settings))
"""In the order of ``scp/deploy/plainpacs.toml``, which explains each."""

_BY_NAME = {declaration.name: declaration for declaration in TABLE}


def options(*names: str) -> Callable[[F], F]:
    """Gives a click command the flags of the settings ``names`` (none: of all), and ``--config``.

    The flags arrive as keyword arguments that are None when not given: pass them to ``load``.
    """

    def decorate(command: F) -> F:
        for name in reversed(names or tuple(_BY_NAME)):
            declaration = _BY_NAME[name]
            default = declaration.default
            shown = ",".join(default) if isinstance(default, tuple) else default
            tail = f"  [{shown}]" if shown not in ("", None) else ""
            words = declaration.help + tail
            if declaration.switch:
                both = f"{declaration.flag}/--no-{declaration.flag[2:]}"
                command = click.option(both, name, default=None, help=words)(command)
            else:
                command = click.option(
                    declaration.flag, name, metavar=declaration.metavar, help=words
                )(command)
        return click.option(
            "--config",
            metavar="FILE",
            help="TOML file of settings (or $PLAINPACS_CONFIG; see `plainpacs status`)",
        )(command)

    return decorate


def load(
    flags: Mapping[str, Any], config: str | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings from flags (None: not given), variables and file; below them those of the
    ``serve`` that runs this as a command of its settings. Raises BadSettings."""
    found: dict[str, Any] = {}
    if DOCUMENT in environ:
        found |= asdict(from_document(environ[DOCUMENT]))
    config = config or environ.get("PLAINPACS_CONFIG")
    if not config and environ is os.environ and DOCUMENT not in environ:
        config = settings_file.found()
    if config:
        for key, value in settings_file.read(config).items():
            declaration = _named(key.replace("-", "_"), f"{config}: key {key}")
            found[declaration.name] = _parsed(declaration, value, f"{config}: {key}")
    for variable, value in environ.items():
        if _is_setting(variable):
            name = variable.removeprefix("PLAINPACS_").lower()
            declaration = _named(name, f"variable {variable}")
            found[declaration.name] = _parsed(declaration, value, variable)
    for name, value in flags.items():
        if value is not None:
            found[name] = _parsed(_BY_NAME[name], value, _BY_NAME[name].flag)
    return Settings(**found)


def in_force(flags: Mapping[str, Any], config: str | None = None) -> Settings:
    """``load``; from now on this process reads text as the default_charset of the settings says."""
    settings = load(flags, config)
    use_defaults(settings.default_charset)
    return settings


def reloaded(before: Settings, now: Settings) -> tuple[Settings, list[str]]:
    """``before`` with what of ``now`` may change while the service runs, and what else differs."""
    merged = replace(before, **{one.name: getattr(now, one.name) for one in TABLE if one.reloaded})
    others = [one.name for one in TABLE if getattr(merged, one.name) != getattr(now, one.name)]
    return merged, others


# --- for child processes --------------------------------------------------------------------------


def to_document(settings: Settings) -> str:
    """All ``settings`` as one line of JSON."""
    return json.dumps(asdict(settings))


def from_document(text: str) -> Settings:
    """The settings that ``to_document`` was given. Raises BadSettings."""
    try:
        known = {name: value for name, value in json.loads(text).items() if name in _BY_NAME}
    except (ValueError, AttributeError):
        raise BadSettings(f"{DOCUMENT} is not a document of settings") from None
    return load(known, environ={})


def environment(settings: Settings, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``environ`` for a command of the user, in which plainpacs has these ``settings``, too."""
    others = {
        name: value
        for name, value in environ.items()
        if not _is_setting(name) and name != "PLAINPACS_CONFIG"
    }
    return {**others, DOCUMENT: to_document(settings)}


# --- pieces ---------------------------------------------------------------------------------------


def _is_setting(variable: str) -> bool:
    """Whether it means to be one."""
    return (
        variable.startswith("PLAINPACS_")
        and variable not in _OTHER_VARIABLES
        and not variable.startswith(_TEST_VARIABLES)
    )


def _named(name: str, where: str) -> Declaration:
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, 1, 0.0)[0]
        raise BadSettings(f"{where} is not a setting; the nearest is {near}")
    return _BY_NAME[name]


def _parsed(declaration: Declaration, value: Any, where: str) -> Any:
    try:
        return declaration.parse(value)
    except ValueError as error:
        raise BadSettings(f"{where} = {value!r} cannot be: {error}") from None
