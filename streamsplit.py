"""``streamsplit <verb>``: the one command. Every verb hands over to the room that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence


def _demo(argv: list[str]) -> int:
    from broker.start import open_broker
    from common.config import EXIT_CONFIG
    from common.errors import ConfigError
    from common.process import prepare_folder
    from trainer.demo import RunFailed, run
    from trainer.demo_options import parse

    try:
        options, choice = parse(argv)
        prepare_folder(options.out, "--out")
        with open_broker(choice, directory=options.out / "broker") as broker:
            run(options, broker_url=broker.url, broker_kind=broker.kind)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _broker(argv: list[str]) -> int:
    from broker.__main__ import main as run_broker

    return run_broker(argv)


def _broker_config(argv: list[str]) -> int:
    from broker.configuration import main as write_configuration

    return write_configuration(argv)


def _trainer(argv: list[str]) -> int:
    from trainer.__main__ import main as run_trainer

    return run_trainer(argv)


def _device(argv: list[str]) -> int:
    from device.__main__ import main as run_device

    return run_device(argv)


def _watch(argv: list[str]) -> int:
    from trainer.watch import main as watch

    return watch(argv)


def _evaluate(argv: list[str]) -> int:
    from trainer.evaluate import main as evaluate

    return evaluate(argv)


def _export(argv: list[str]) -> int:
    from trainer.export import main as export

    return export(argv)


def _train_policy(argv: list[str]) -> int:
    from trainer.train_policy import main as train_policy

    return train_policy(argv)


def _policy(argv: list[str]) -> int:
    from trainer.learn_policy import main as learn_policy

    return learn_policy(argv)


def _plan_cuts(argv: list[str]) -> int:
    from common.split import main as plan_cuts

    return plan_cuts(argv)


def _profile(argv: list[str]) -> int:
    from common.errors import ConfigError
    from common.profile_command import main as profile

    try:
        return profile(argv)
    except ConfigError as error:
        return _refused(error)


def _plan(argv: list[str]) -> int:
    from common.errors import ConfigError
    from trainer.plan_command import main as plan

    try:
        return plan(argv)
    except ConfigError as error:
        return _refused(error)


def _refused(error: Exception) -> int:
    from common.config import EXIT_CONFIG

    print(error, file=sys.stderr)
    return EXIT_CONFIG


VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "demo": (_demo, "run a whole fleet on this machine and write a report"),
    "broker": (_broker, "run an MQTT broker in the foreground"),
    "broker-config": (_broker_config, "write configuration and ACL of a Mosquitto for a deployed fleet"),
    "trainer": (_trainer, "run the trainer of a fleet"),
    "device": (_device, "run one device of a fleet"),
    "watch": (_watch, "show the devices of a running fleet in a live table"),
    "evaluate": (_evaluate, "score a checkpoint on labelled recordings"),
    "export": (_export, "write what was learned as one file that torch runs without this project"),
    "profile": (_profile, "measure what each block of an encoder costs on this machine"),
    "plan": (_plan, "find where an encoder is best cut for a board and a link"),
    "train-policy": (_train_policy, "learn in the simulator how devices choose their cut"),
    "policy": (_policy, "go on learning that from a fleet's telemetry, and publish it"),
    "plan-cuts": (_plan_cuts, "print what each cut of an encoder costs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="streamsplit",
        description="Train an audio encoder on a fleet of small devices, without raw audio leaving them.",
        epilog="\n".join(f"  {verb:<13} {what}" for verb, (_, what) in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of the verbs below; VERB --help says more")
    verb = parser.parse_args(arguments[:1]).verb
    from common.output import to_any_reader

    try:
        return to_any_reader(lambda: VERBS[verb][0](arguments[1:]))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
