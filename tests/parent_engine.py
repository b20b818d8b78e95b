"""An engine that starts a process, as vLLM does, and rejects one request; see test_replicas.py."""

import subprocess
import sys
import time
from pathlib import Path

from instructgen.engines import Request
from instructgen.engines.echo import EchoEngine


class Parent(EchoEngine):
    """Answers as `echo`; writes the number of its child process to a file."""

    name = "parent"

    file: str = ""
    seconds: float = 0.0

    def start(self) -> None:
        """Start the child, and take some seconds."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(self.file).write_text(str(child.pid))
        time.sleep(self.seconds)

    def submit(self, number: int, request: Request) -> None:
        """Accept the request unless it is ``bad``."""
        if request.prompt == "bad":
            raise ValueError("roles must alternate")
        super().submit(number, request)
