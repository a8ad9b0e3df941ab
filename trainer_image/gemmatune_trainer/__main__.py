"""The trainer process: prepare, train, merge, check or inspect; every end becomes an exit code and a message."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import ENV_RUN, EXIT_REASONS, ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.errors import InvalidConfig, explain, text_of
from gemmatune_trainer.logs import configure, log
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.termination import leave


def main(arguments: Sequence[str]) -> int:
    """Runs one role; the exit code."""
    ranks = Ranks.of_environment()
    configure(rank=ranks.rank)
    stop = StopFlag()
    stop.install(_end)
    try:
        message = _role(arguments, ranks)(_config(), stop)
        code = ExitCode.DONE
    except BaseException as error:  # noqa: BLE001 - the one place where every end is put into words
        message, code = _ending(error)
    leave(message)
    return int(code)


def _config() -> RunConfig:
    text = os.environ.get(ENV_RUN)
    if not text:
        raise InvalidConfig(
            f"the environment variable {ENV_RUN} is not set", "Start the trainer by the operator or gft."
        )
    return RunConfig.from_env(text)


def _role(arguments: Sequence[str], ranks: Ranks) -> Callable[[RunConfig, StopFlag], TerminationMessage]:
    """The function of a role; its libraries are imported only when it is called for."""
    if list(arguments) == ["prepare"]:
        from gemmatune_trainer.prepare import prepare

        return prepare
    if list(arguments) == ["train"]:
        return _train(ranks)
    if list(arguments) == ["merge"]:
        from gemmatune_trainer.merge import merge

        return merge
    if list(arguments) == ["check"]:
        from gemmatune_trainer.check import check

        return check
    if len(arguments) == 3 and list(arguments[:2]) == ["inspect", "-n"] and arguments[2].isdigit():
        return lambda config, stop: _inspect(config, int(arguments[2]))
    raise InvalidConfig(
        f"the arguments are {list(arguments)}",
        "Use `python -m gemmatune_trainer prepare`, `train`, `merge`, `check` or `inspect -n ROWS`.",
    )


def _train(ranks: Ranks) -> Callable[[RunConfig, StopFlag], TerminationMessage]:
    """Rank 0 tells the story, the others help it."""
    if ranks.main:
        from gemmatune_trainer.run import run

        return lambda config, stop: run(config, stop, ranks)
    from gemmatune_trainer.follow import follow

    return lambda config, stop: follow(config, stop, ranks)


def _inspect(config: RunConfig, rows: int) -> TerminationMessage:
    """Prints rows for `gft inspect`; its process leaves nothing else."""
    from gemmatune_trainer.inspect import inspect

    inspect(config, rows)
    return TerminationMessage()


def _end(error: BaseException) -> None:
    """Ends the process here and now, from a thread beside one that is in native code: no clean-up could be waited for.

    It is left as after a kill, but with the reason and the exit code of its end.
    """
    message, code = _ending(error)
    leave(message)
    sys.stderr.flush()
    os._exit(int(code))


def _ending(error: BaseException) -> tuple[TerminationMessage, ExitCode]:
    known = explain(error)
    if known is None:
        log.exception("crashed", exc_info=error)
        text = text_of(error)
        reason = EXIT_REASONS[ExitCode.CRASHED]
        return TerminationMessage(reason=reason, message=text, remedy="Read the pod's log."), ExitCode.CRASHED
    log.error("ended", reason=str(known.reason), message=known.message, remedy=known.remedy, exit_code=known.exit_code)
    message = TerminationMessage(
        reason=known.reason,
        message=known.message,
        remedy=known.remedy,
        step=known.step,
        sequences=known.sequences,
    )
    return message, known.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # daemon threads and CUDA's teardown must not change the exit code
