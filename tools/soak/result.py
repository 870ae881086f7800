"""What a check of the soak did and found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Result:
    """done: what was tried and how often, in words. found: what was measured. failures: empty when all is well."""

    check: str
    done: str = ""
    found: str = ""
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def require(self, condition: bool, failure: str) -> None:
        """Notes a failure and goes on: one broken prompt must not hide the next."""
        if not condition:
            self.failures.append(failure)
