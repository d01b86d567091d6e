"""A refusal, and what a doctor was asked to look at."""

from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """`code` never changes its meaning, so that scripts may rely on it; `where` is a file, a node or nothing."""

    code: str
    reason: str
    fix: str
    where: str = ""

    def __str__(self) -> str:
        return f"[{self.code}] {self.where + ': ' if self.where else ''}{self.reason}. Fix: {self.fix}."

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Request:
    """One run as it would be launched."""

    ds_config: Path
    nodes: int = 1
    slots: int = 1
    hostfile: Path | None = None
    data: Path | None = None
    run: Path = Path("runs")
    config: Path | None = None
    scale: str | None = None
    overrides: list[str] = field(default_factory=list)
    launcher: str = "pdsh"
    master_port: int = 29500  # DeepSpeed's own
    timeout_s: float = 10.0  # of a node's answer

    @property
    def ranks(self) -> int:
        return self.nodes * self.slots
