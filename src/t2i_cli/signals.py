"""The signals that ask t2i to end."""

import signal


def termination_signals() -> set[signal.Signals]:
    """Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes, unless nohup has that ignored."""
    found = {signal.SIGINT, signal.SIGTERM}
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.add(hangup)
    return found
