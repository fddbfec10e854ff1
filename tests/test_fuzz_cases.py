"""What fuzzing found once, and the seeds that it starts from: each holds the property from now on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import archives, merges
from tests.support import images

CASES = Path(__file__).parent / "data" / "fuzz"
REFUSED = ("circle", "up")
Check = Callable[[bytes], bool]


@pytest.mark.parametrize(
    ("check", "case"),
    [
        pytest.param(check, case, id=f"{case.parent.name}/{case.name}")
        for check, target in ((archives.check, "tar"), (merges.check, "merge"))
        for case in sorted((CASES / target).glob("*"))
    ],
)
def test_a_finding_stays_fixed(check: Check, case: Path) -> None:
    """An input that once broke the property does not break it again; it is read or refused."""
    check(case.read_bytes())


@pytest.mark.parametrize(
    ("check", "seed"),
    [
        *(pytest.param(archives.check, seed, id=f"tar/{name}") for name, seed in archives.seeds()),
        *(pytest.param(merges.check, seed, id=f"merge/{name}") for name, seed in merges.seeds() if name not in REFUSED),
    ],
)
def test_a_seed_is_accepted(check: Check, seed: bytes) -> None:
    """The fuzzer begins with inputs that mean something."""
    assert check(seed)


def test_mutations_hold_the_property() -> None:
    """Some hundred mutations, always the same, so that the property and the mutator themselves are tested."""
    choice = random.Random(0)
    seeds = [seed for _, seed in archives.seeds()]
    accepted = 0
    for _ in range(600):
        stream = archives.mutate(choice.choice(seeds), 16_384, choice.getrandbits(32), _flip)
        accepted += archives.check(stream)
    assert 60 < accepted < 540
    for _ in range(200):
        merges.check(choice.randbytes(choice.randrange(40)))


def _flip(data: bytes, maximum: int) -> bytes:
    """One changed byte."""
    at = len(data) // 3
    return (data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])[:maximum] if data else data


def test_layers_are_written_and_read() -> None:
    """Bytes stand for the layers that they were written for, an end of a layer between them."""
    layers = [[images.file("a/b"), images.symlink("b", "/a")], [images.whiteout("a/b"), images.hardlink("c", "b")]]
    found = merges.layers(merges.written(layers))
    assert [[(each.path, each.type, each.link) for each in layer] for layer in found] == [
        [(each.path, each.type, each.link) for each in layer] for layer in layers
    ]
    with pytest.raises(ValueError, match="no bytes stand for"):
        merges.written([[images.file("elsewhere")]])
