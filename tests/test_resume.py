"""A run that is killed, stopped or left alone ends with the same bits."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "bench" / "kill_resume.py"


def test_killed_and_resumed():
    """At a random time, inside a checkpoint, inside a line of the log. The script by itself is the longer run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, str(SCRIPT), "--kills", "6", "--steps", "40", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 6
    assert done.stdout.endswith("6 kills, and not a bit differs\n")
