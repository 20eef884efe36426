"""The results file: written whole after every row, under another name and then renamed, so that nothing is lost.

    {"format": .., "device": .., "sections": {"kernels": {"date": .., "versions": .., "rows": [..]}, ..}}

A section that is measured again replaces its rows; the others stay, each with its own date and versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FORMAT = "weft-gpu-results 1"
# What a figure may depend on. Peers are here too: an absent one is a finding.
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "flash-attn")

Row = dict[str, Any]


def device_title(device: torch.device) -> str:
    """As the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU with Triton's interpreter"


def file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".json"


def versions() -> dict[str, str | None]:
    """None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def read(path: Path) -> dict[str, Any]:
    """The file's data, or that of an empty one. SystemExit for another file."""
    if not path.exists():
        return {"format": FORMAT, "device": None, "sections": {}}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"{path} is no results file of this version: give another --out") from None
    return data


class Results:
    """The rows of one section, kept in `path` as they come.

    `run` names an invocation of the script: a process that takes over from one that died goes on behind its rows.
    """

    def __init__(self, path: Path, section: str, run: str, device: torch.device, options: dict[str, Any]) -> None:
        self.path = path
        self.data = read(path)
        self.data["device"] = device_title(device)
        known = self.data["sections"].get(section)
        if known is None or known["run"] != run:
            known = {"run": run, "date": _now(), "versions": versions(), "options": options, "rows": [], "trying": None}
        self.section = self.data["sections"][section] = known
        self.done = {row["name"] for row in known["rows"]}

    def begin(self, name: str) -> None:
        """Notes what is measured now: if the process ends, the next one knows what not to meet again."""
        self.section["trying"] = name
        self.write()

    def give_up(self, why: str) -> bool:
        """A row for what was being measured when the process ended. False when that was nothing."""
        name = self.section["trying"]
        if name is None:
            return False
        self.add({"name": name, "failure": why})
        return True

    def add(self, row: Row) -> None:
        """A row has a `name` of its own in the section."""
        self.section["rows"].append(row)
        self.section["trying"] = None
        self.done.add(row["name"])
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
