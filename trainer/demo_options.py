"""The command line of the demonstration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from common import config
from common.codec import Codec
from common.config_types import ENCODER_DEPTH
from common.encoder import ENCODERS
from common.errors import ConfigError
from trainer.dataset_layouts import DATA_HELP, ESC10_HELP
from trainer.demo_files import MODES, DemoOptions

SPLITTERS = ("heuristic",)


def parse(argv: Sequence[str]) -> tuple[DemoOptions, str]:
    """Options and choice of broker.

    Raises:
        ConfigError: values that cannot be used, all of them at once.
    """
    given = _parser().parse_args(argv)
    options = DemoOptions(
        devices=given.devices,
        windows=given.windows,
        data=given.data,
        fold=given.fold,
        order=given.order,
        shard=given.shard,
        profiles=tuple(given.profile),
        cut=given.cut,
        codec=given.codec,
        encoder=given.encoder,
        speed=given.speed,
        seed=given.seed,
        out=given.out,
        mode=given.mode,
        trainer_settings=tuple(_setting(text, "--set", "the trainer's file") for text in given.set),
        fleet_settings=tuple(_setting(text, "--set-fleet", "the fleet file") for text in given.set_fleet),
        device_settings=tuple(_setting(text, "--set-device", "a device's file") for text in given.set_device),
        esc10=given.esc10,
    )
    problems = list(_problems(options))
    if problems:
        raise ConfigError("\n".join(problems))
    return options, given.broker


def _setting(text: str, option: str, file: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"{option} {text}: allowed is KEY=VALUE with a key of {file}")
    return key, yaml.safe_load(value)


def _problems(options: DemoOptions) -> list[str]:
    problems = []
    if options.windows < 1:
        problems.append(f"--windows {options.windows}: allowed are 1 and more")
    elif not 1 <= options.devices <= options.windows:
        problems.append(f"--devices {options.devices}: allowed are 1 to --windows ({options.windows})")
    if options.cut not in SPLITTERS and not (options.cut.isdigit() and int(options.cut) <= ENCODER_DEPTH):
        problems.append(f"--cut {options.cut}: allowed are 0 to {ENCODER_DEPTH} and {', '.join(SPLITTERS)}")
    for profile in options.profiles:
        problems += _of(lambda name=profile: config.load_profile(name), "--profile")
    if options.codec is not None:
        problems += _of(lambda: Codec.parse(options.codec or ""), "--codec")
    return problems


def _of(check: object, option: str) -> list[str]:
    try:
        check()  # type: ignore[operator]
    except (ConfigError, ValueError) as error:
        return [f"{option}: {error}"]
    return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamsplit demo",
        description="Run a fleet on this machine: one process per device, a broker, the trainer; ends by itself.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--devices", type=int, default=4, help="devices")
    add("--windows", type=int, default=6000, help="windows of 0.96 s, all devices together")
    add("--data", type=Path, help=f"{DATA_HELP}; without labels no evaluation, without it a synthetic soundscape")
    add("--esc10", action="store_true", help=ESC10_HELP)
    add("--fold", type=int, default=1, help="fold (or fifth of the files) that is held out for evaluation")
    add("--order", choices=("stream", "shuffled"), default="stream", help="contiguous windows, or random ones")
    add("--shard", choices=("iid", "by-class"), default="iid", help="how recordings are dealt to the devices")
    add("--profile", action="append", default=[], help="board to imitate, in turn; may be given several times")
    add("--cut", default="5", help="blocks on the device, or heuristic; one below min_cut, 3, lowers it as well")
    add("--mode", choices=MODES, default="split", help="split, or one of the baselines")
    add("--codec", help="codec of the activations; the default is the device's")
    add("--encoder", choices=ENCODERS, default="mobile", help="encoder")
    add("--broker", default="auto", help="auto, mosquitto, embedded, or mqtt://HOST[:PORT]")
    add("--speed", choices=("fast", "realtime"), default="fast", help="as fast as it computes, or as it sounds")
    add("--seed", type=int, default=0, help="seed of everything random")
    for option, what in (
        ("--set", "a key of the trainer's file, such as learning_rate=0.001"),
        ("--set-fleet", "a key of the fleet file, such as parts_per_step=4"),
        ("--set-device", "a key of every device's file, such as local_learning=false or splitter.cut=6"),
    ):
        add(option, action="append", default=[], metavar="KEY=VALUE", help=what)
    add("--out", type=Path, default=Path("streamsplit-demo"), help="folder of the run")
    return parser
