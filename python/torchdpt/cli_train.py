"""What `torchdpt train` does; its arguments are read by torchdpt_command."""

from __future__ import annotations

import argparse
import logging
import os
import sys

import yaml

from torchdpt.training import TrainConfig, fit


def train(args: argparse.Namespace) -> int:
    """Exit status: 0 when training is finished, 3 when a signal ended it and its checkpoint is saved."""
    config = TrainConfig.load(args.config, args.changes)
    if args.print:
        print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
        return 0
    first = int(os.environ.get("RANK", 0)) == 0
    log = logging.getLogger("torchdpt")
    log.setLevel(logging.INFO if first else logging.ERROR)
    log.addHandler(_AboveTheBar())
    try:
        result = fit(config, allow_changes=args.allow_changes, progress=first and sys.stderr.isatty())
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that reads data ended ({str(error).splitlines()[0]}), for want of memory, it may be: workers=0 "
            "reads without; the same command goes on from the last checkpoint"
        ) from error
    finally:
        log.handlers.clear()
    if first and result.finished:
        print(config.out / "final")
    return 0 if result.finished else 3


class _AboveTheBar(logging.Handler):
    """Lines that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)
