import os
import signal
import subprocess
import sys

from service.parent import LEASH

CHILD = """
import signal, threading
from service.parent import stop_with_parent
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
stop_with_parent()
print(*(thread.name for thread in threading.enumerate()), flush=True)
signal.sigwait({signal.SIGUSR1})
"""

PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE)
child.wait()
"""


def _start(code: str, leash: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, LEASH: leash},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class TestLeash:
    def test_that_is_let_go_ends_the_child_with_sigterm(self) -> None:
        with _start(CHILD, "1") as child:
            assert child.stdout is not None
            assert child.stdout.readline().split() == ["MainThread", "leash"]
            assert child.stdin is not None
            child.stdin.close()
            assert child.wait() == -signal.SIGTERM

    def test_does_not_end_the_child_for_what_is_written_to_it(self) -> None:
        with _start(CHILD, "1") as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert child.stdin is not None
            child.stdin.write("hello\n" * 10_000)
            child.stdin.flush()
            child.send_signal(signal.SIGUSR1)
            assert child.wait() == 0

    def test_is_let_go_by_a_parent_that_is_killed(self) -> None:
        with _start(PARENT, "1") as parent:
            assert parent.stdout is not None
            assert "leash" in parent.stdout.readline()
            parent.kill()
            parent.wait()
            # The child holds the other end of this pipe: it ends when the child does.
            assert parent.stdout.read() == ""

    def test_is_not_held_where_no_parent_asks_for_it(self) -> None:
        with _start(CHILD, "") as child:
            assert child.stdout is not None
            assert child.stdout.readline().split() == ["MainThread"]
            assert child.stdin is not None
            child.stdin.close()
            child.send_signal(signal.SIGUSR1)
            assert child.wait() == 0
