"""The stored workers, about 0.9 KB each. An update changes their turn, and not their size."""

from functools import lru_cache

from kvorum.encoding.stored import codec_for
from kvorum.lab import LabWorker

PLURAL = LabWorker.kind.plural
TURN = "turn"
LEAST = 800  # bytes; a smaller value is not one of these


def name_of(number: int) -> str:
    return f"worker-{number:06}"


def number_of(name: str) -> int:
    return int(name.removeprefix("worker-"))


def worker_of(number: int) -> LabWorker:
    """Return a worker whose stored form has about 0.9 KB."""
    worker = LabWorker.new(name_of(number), lab_track=f"track-{number % 20:02}")
    worker.metadata.labels |= {"region": "us-east-1", "tier": "standard", "serial": str(number)}
    worker.metadata.annotations |= {"note": "x" * 250, TURN: text_of(0)}
    return worker


@lru_cache(maxsize=32_768)
def stored_form_of(number: int) -> bytes:
    """Return the bytes that Kvorum stores for it; other clients store the same."""
    return codec_for(LabWorker).draft_new(worker_of(number)).stored.value


def pair_of(prefix: str, number: int) -> tuple[bytes, bytes]:
    """Return the key and value of a worker."""
    return f"{prefix}{name_of(number)}".encode(), stored_form_of(number)


def text_of(turn: int) -> str:
    return f"{turn:08}"


def turn_of(worker: LabWorker) -> int:
    return int(worker.metadata.annotations[TURN])


def set_turn(worker: LabWorker, turn: int) -> None:
    worker.metadata.annotations[TURN] = text_of(turn)


def turn_in(value: bytes) -> int:
    """Read the turn of an untyped value from its last eight bytes."""
    text = value[-8:]
    return int(text) if text.isdigit() else 0


def with_turn(value: bytes, turn: int) -> bytes:
    """Change an untyped value at minimal cost."""
    return value[:-8] + text_of(turn).encode()
