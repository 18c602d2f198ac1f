"""The signals that terminate t2i."""

import signal


def termination_signals() -> set[signal.Signals]:
    """SIGINT, SIGTERM, and SIGHUP unless it is ignored, as by nohup."""
    found = {signal.SIGINT, signal.SIGTERM}
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.add(hangup)
    return found
