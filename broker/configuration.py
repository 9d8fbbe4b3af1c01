"""The files that a Mosquitto reads: for one run on this machine, or for a deployed fleet with users, ACL and TLS."""

from __future__ import annotations

import argparse
import string
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from common.atomic_file import write_atomically
from common.config import EXIT_CONFIG, load_fleet
from common.config_fleet import FleetConfig
from common.errors import ConfigError
from common.link_address import BrokerAddress
from common.process import prepare_folder
from common.topics import IDENTITY, ROOT

DEBIANS_DIRECTORY = "/etc/mosquitto"
CERTIFICATES = "certfile {etc}/certs/server.crt\nkeyfile {etc}/certs/server.key"
CLIENT_CERTIFICATES = "cafile {etc}/ca_certificates/ca.crt\nrequire_certificate true"
CLEAR_TEXT = (
    "# An mqtt:// address: passwords and activations travel as they are. With mqtts:// certificates stand here."
)


def for_development(host: str, port: int) -> str:
    """A broker of one run: anybody may do anything, nothing is kept."""
    return _filled("development.conf", host=host, port=port) + _limits(
        FleetConfig.model_fields["max_message_bytes"].default
    )


def for_deployment(fleet: FleetConfig, *, etc: str = DEBIANS_DIRECTORY) -> str:
    """A broker that knows its users, at the port of the fleet's broker, with TLS where the fleet's address has it.

    ``etc``: the directory on the broker's machine that will hold passwords, ACL and certificates.
    """
    address = BrokerAddress.parse(fleet.broker.url)
    parts = [CERTIFICATES] if address.secure else [CLEAR_TEXT]
    if fleet.broker.certificate is not None:
        parts.append(CLIENT_CERTIFICATES)
    tls = "\n".join(parts).format(etc=etc)
    users = _filled("deployed.conf", fleet=fleet.fleet, etc=etc, port=address.port, tls=tls)
    return users + _limits(fleet.max_message_bytes)


def access_list(
    fleet: FleetConfig, *, trainer: str = "_trainer", policy: str = "_policy", watch: str = "_watch"
) -> str:
    """Who may read and write which topics: the users of trainer, ``streamsplit policy`` and ``watch``, every device."""
    root = f"{ROOT}/{fleet.fleet}"
    return _filled("deployed.acl", fleet=fleet.fleet, root=root, trainer=trainer, policy=policy, watch=watch)


def _limits(max_message_bytes: int) -> str:
    return "\n" + _filled("limits.conf", max_message_bytes=max_message_bytes)


def _filled(name: str, **values: object) -> str:
    template = resources.files("broker").joinpath(name).read_text(encoding="utf-8")
    return string.Template(template).substitute(values)


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    print(path)


def _user(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip() or set(text) & set("+#"):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are printable characters but + and #")
    if IDENTITY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: a device may be called like that, and would be this user")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """``streamsplit broker-config``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="streamsplit broker-config",
        description="Write configuration and ACL of a Mosquitto for a fleet whose devices have a user each.",
    )
    parser.add_argument("fleet", type=Path, help="the fleet's file: its name, broker address and largest message count")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for streamsplit.conf and streamsplit.acl")
    parser.add_argument("--etc", default=DEBIANS_DIRECTORY, help="where passwords, ACL and certificates will lie")
    parser.add_argument("--trainer", type=_user, default="_trainer", metavar="USER", help="the trainer's user")
    parser.add_argument("--policy", type=_user, default="_policy", metavar="USER", help="the policy process's user")
    parser.add_argument("--watch", type=_user, default="_watch", metavar="USER", help="the user of streamsplit watch")
    arguments = parser.parse_args(argv)
    try:
        fleet = load_fleet(arguments.fleet)
        prepare_folder(arguments.out, "--out")
        _write(arguments.out / "streamsplit.conf", for_deployment(fleet, etc=arguments.etc))
        users = access_list(fleet, trainer=arguments.trainer, policy=arguments.policy, watch=arguments.watch)
        _write(arguments.out / "streamsplit.acl", users)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    return 0
