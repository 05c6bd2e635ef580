"""Every setting, declared once: its name, what it may be, its default and its words.

A value comes from the flag, else the variable ``PLAINPACS_<NAME>``, else the TOML file given with
``--config`` (or ``$PLAINPACS_CONFIG``), else the default. All are validated together, once, into
the frozen ``Settings``; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from plainpacs.archive.app.hook_command import INSTANCE_PLACES, STUDY_PLACES
from plainpacs.archive.app.setting_values import (
    ae_addresses,
    ae_title,
    ae_titles,
    choice,
    hook,
    network,
    node,
    nodes,
    reserve,
    seconds,
    several,
    text,
    uid,
    whole,
)
from plainpacs.archive.errors import BadSettings

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force. Times in seconds, lengths in bytes."""

    aet: tuple[str, ...] = ("DRDCM",)
    called_ae: str = "ours"
    calling_ae: tuple[str, ...] = ()
    allow_peers: tuple[str, ...] = ()
    ae_addresses: tuple[str, ...] = ()
    bind: str = ""
    port: int = 11112
    max_associations: int = 64
    max_associations_per_peer: int = 0
    receivers: int = 0
    max_pdu: int = 1 << 20
    pdu_timeout: float = 30.0
    idle_timeout: float = 300.0
    nodes: tuple[str, ...] = ()
    refuse_sop_class: tuple[str, ...] = ()
    query_retrieve: str = "nodes"
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    tls_verify: str = "off"
    sync: str = "on"
    digest: str = "blake3"
    on_conflict: str = "keep"
    reserve: str = "1G,2%"
    on_study_settled: str = ""
    on_instance: str = ""
    settle_seconds: float = 60.0
    hooks_at_once: int = 2
    node: str | None = None
    log_level: str = "info"
    log_format: str = "text"
    metrics_port: int | None = None
    metrics_bind: str = "127.0.0.1"
    web: int | None = None
    web_bind: str = "127.0.0.1"
    web_hosts: tuple[str, ...] = ()
    web_users: str = ""
    web_user_header: str = ""
    web_proxies: tuple[str, ...] = ()
    web_origins: tuple[str, ...] = ()
    web_open: str = "off"
    web_stow: str = "off"
    ohif: str = ""


@dataclass(frozen=True, slots=True)
class Declaration:
    """One row of the table. ``parse`` takes text (or a TOML value) and raises ValueError."""

    name: str
    parse: Callable[[Any], Any]
    metavar: str
    help: str
    switch: bool = False
    """On the command line it is ``--name`` for on and ``--no-name`` for off."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PLAINPACS_" + self.name.upper()


TABLE: tuple[Declaration, ...] = (
    Declaration("aet", ae_titles, "A,B", "our AE titles"),
    Declaration("called_ae", choice("ours", "any"), "ours|any", "called AE titles accepted"),
    Declaration("calling_ae", several(ae_title), "A,B", "calling AE titles allowed (all)"),
    Declaration("allow_peers", several(network), "CIDR,…", "networks peers may be in (all)"),
    Declaration("ae_addresses", ae_addresses, "AE=CIDR,…", "calling AE titles that may come from"
                " these addresses only (none)"),
    Declaration("bind", text, "ADDRESS", "address to listen on (all)"),
    Declaration("port", whole(0, 65535), "PORT", "port to listen on; 0 lets the system pick"),
    Declaration("max_associations", whole(1, 10000), "N", "associations at once"),
    Declaration("max_associations_per_peer", whole(0, 10000), "N", "of these from one address; 0:"
                " all"),
    Declaration("receivers", whole(0, 64), "N", "processes that receive; 0: by the cores"),
    Declaration("max_pdu", whole(4096, 1 << 27), "BYTES", "longest PDU we announce to take"),
    Declaration("pdu_timeout", seconds, "SECONDS", "a PDU arrives within, from its first byte"),
    Declaration("idle_timeout", seconds, "SECONDS", "silence after which we abort"),
    Declaration("nodes", nodes, "AET@HOST:PORT,…", "applications elsewhere: who may query,"
                " what C-MOVE may send to, storage commitment reports to, and commands call by name"
                " (none); with TLS: AET@HOST:PORT/tls"),
    Declaration("refuse_sop_class", several(uid), "UID,…", "SOP Classes refused (none)"),
    Declaration("query_retrieve", choice("any", "nodes", "off"), "any|nodes|off", "who may query"
                " and retrieve (C-FIND, C-MOVE, C-GET): all who may associate; this machine and the"
                " --nodes; nobody"),
    Declaration("tls_cert", text, "FILE", "certificate, and chain, in PEM: serve TLS (no TLS)"),
    Declaration("tls_key", text, "FILE", "its private key, if not in the same file"),
    Declaration("tls_ca", text, "FILE", "certificates of who is trusted to have signed peers'"),
    Declaration("tls_verify", choice("on", "off"), "on|off", "refuse peers without a certificate"
                " by --tls-ca", switch=True),
    Declaration("sync", choice("on", "off"), "on|off", "off: 0000 outlives a crash of plainpacs"
                " but not of the machine"),
    Declaration("digest", choice("blake3", "sha256"), "NAME", "digest kept: blake3 or sha256"),
    Declaration("reserve", reserve, "SIZE", "room that stays free: 500M, 2%, 0, or 1G,2% (the"
                " smaller)"),
    Declaration("on_conflict", choice("keep", "replace"), "keep|replace", "other bytes under a"
                " stored UID: kept aside, or published (the first is kept aside)"),
    Declaration("on_study_settled", hook(STUDY_PLACES), "COMMAND", "run when a study has had no"
                " new instance for a while; {path}, {StudyInstanceUID} … are put in (none)"),
    Declaration("on_instance", hook(INSTANCE_PLACES), "COMMAND", "run for each new instance"
                " (none)"),
    Declaration("settle_seconds", seconds, "SECONDS", "the while after which a study is settled"),
    Declaration("hooks_at_once", whole(1, 64), "N", "such commands that run at once"),
    Declaration("node", node, "NAME", "this writer's own manifests, on a shared file system"),
    Declaration("log_level", choice("debug", "info", "warning", "error"), "LEVEL", "log from"),
    Declaration("log_format", choice("text", "json"), "text|json", "json: one object a line"),
    Declaration("metrics_port", whole(0, 65535), "PORT", "HTTP /metrics and /healthz (none)"),
    Declaration("metrics_bind", text, "ADDRESS", "address of the metrics port"),
    Declaration("web", whole(0, 65535), "PORT", "study list and DICOMweb for browsers (none)"),
    Declaration("web_bind", text, "ADDRESS", "address of the web server"),
    Declaration("web_hosts", several(text), "NAME,…", "names by which browsers reach it, besides"
                " localhost"),
    Declaration("web_users", text, "FILE", "who may read: name:password lines as `htpasswd -B`"
                " writes them"),
    Declaration("web_user_header", text, "NAME", "header in which a proxy of --web-proxies says"
                " who signed in"),
    Declaration("web_proxies", several(network), "CIDR,…", "addresses of reverse proxies whose"
                " headers count"),
    Declaration("web_origins", several(text), "URL,…", "other sites whose pages may read (CORS)"),
    Declaration("web_open", choice("on", "off"), "on|off", "serve other addresses than this"
                " machine's without a password", switch=True),
    Declaration("web_stow", choice("on", "off"), "on|off", "let programs store by STOW-RS",
                switch=True),
    Declaration("ohif", text, "DIR", "the viewer OHIF, unpacked there from npm (none)"),
)  # fmt: skip

_BY_NAME = {declaration.name: declaration for declaration in TABLE}
_DEFAULTS = Settings()
assert set(_BY_NAME) == {field.name for field in fields(Settings)}

# Read by the command line and by the tests, not settings of their own.
_OTHER_VARIABLES = ("PLAINPACS_ARCHIVE", "PLAINPACS_CONFIG")
_TEST_VARIABLES = "PLAINPACS_TEST_"


def options(*names: str) -> Callable[[F], F]:
    """Gives a click command the flags of the settings ``names``, and ``--config``.

    The flags arrive as keyword arguments that are None when not given: pass them to ``load``.
    """

    def decorate(command: F) -> F:
        for name in reversed(names):
            declaration = _BY_NAME[name]
            default = getattr(_DEFAULTS, name)
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
            "--config", metavar="FILE", help="TOML file of settings (or $PLAINPACS_CONFIG)"
        )(command)

    return decorate


def load(
    flags: Mapping[str, Any], config: str | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The settings from flags (None: not given), variables and file. Raises BadSettings."""
    values: dict[str, Any] = {}
    config = config or environ.get("PLAINPACS_CONFIG")
    if config:
        for key, value in _read_toml(config).items():
            name = key.replace("-", "_")
            _known(name, f"{config}: key {key}", [d.name for d in TABLE])
            values[name] = _parsed(_BY_NAME[name], value, f"{config}: {key}")
    for variable, value in environ.items():
        if not variable.startswith("PLAINPACS_") or variable in _OTHER_VARIABLES:
            continue
        if variable.startswith(_TEST_VARIABLES):
            continue
        name = variable.removeprefix("PLAINPACS_").lower()
        _known(name, f"variable {variable}", [d.name for d in TABLE])
        values[name] = _parsed(_BY_NAME[name], value, variable)
    for name, value in flags.items():
        if value is not None:
            values[name] = _parsed(_BY_NAME[name], value, _BY_NAME[name].flag)
    return Settings(**values)


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise BadSettings(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"the configuration {path} is not TOML: {error}") from None


def _known(name: str, where: str, names: list[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise BadSettings(f"{where} is not a setting; the nearest is {near}")


def _parsed(declaration: Declaration, value: Any, where: str) -> Any:
    try:
        return declaration.parse(value)
    except ValueError as error:
        raise BadSettings(f"{where} = {value!r} cannot be: {error}") from None
