"""Fuzz the codec or the timer table: ``python tests/fuzz/fuzz_python.py wire --seconds 600``.

With atheris (``pip install 'filetimer[fuzz]'``) the search is guided by coverage; elsewhere
hypothesis draws from the same mutations.  The committed corpus is where both start; what atheris
adds is kept in build/fuzz.  An input that breaks an invariant is written there too, and the exit
status is not 0.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "fuzz"
LONGEST = {"wire": 12_000, "table": 600}  # bytes of an input
EXAMPLES = 500  # of hypothesis between two looks at the clock

Check = Callable[[bytes], None]


def property_of(target: str) -> Check:
    check: Check = importlib.import_module(f"{target}_property").check
    return check


def with_atheris(target: str, seconds: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["filetimer", "json"]):
        check = property_of(target)
    import mutations

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.4:
            return atheris.Mutate(data, max_size)
        if rng.random() < 0.1:
            data = mutations.stream(rng)
        return mutations.mutate(data, rng)[:max_size]

    found = BUILD / "corpus" / target
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST[target]}",
        f"-artifact_prefix={BUILD}/{target}-",
        "-timeout=20",
        "-print_final_stats=1",
        str(found),
        str(HERE / "corpus" / target),
    ]
    atheris.Setup(arguments, check, custom_mutator=mutator if target == "wire" else None)
    atheris.Fuzz()


def with_hypothesis(target: str, seconds: int) -> None:
    """Rounds of examples until the time is up."""
    import mutations
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    check = property_of(target)
    seeds = [path.read_bytes() for path in sorted((HERE / "corpus" / target).iterdir())]
    randoms = st.randoms(use_true_random=False)
    if target == "wire":
        inputs = st.builds(mutations.stream, randoms) | st.builds(
            mutations.mutate, st.sampled_from(seeds), randoms
        )
    else:
        # st.binary would be a few bytes, as a rule
        inputs = randoms.map(lambda rng: rng.randbytes(rng.randrange(LONGEST[target])))

    give_up = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < give_up:
        rounds += 1

        @seed(time.time_ns())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.target, Phase.shrink],
        )
        @given(inputs)
        def examine(data: bytes) -> None:
            try:
                check(data)
            except Exception:
                BUILD.mkdir(parents=True, exist_ok=True)
                (BUILD / f"{target}-shrunk").write_bytes(data)  # the last one is the smallest
                raise

        examine()
    print(f"{target}: {rounds * EXAMPLES} examples of hypothesis, no finding")


def main() -> None:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description="Fuzz the codec or the timer table.")
    parser.add_argument("target", choices=sorted(LONGEST))
    parser.add_argument("--seconds", type=int, default=600, help="for how long (default: 600)")
    parser.add_argument("--engine", choices=("atheris", "hypothesis"), help="default: the first")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "hypothesis")
    BUILD.mkdir(parents=True, exist_ok=True)
    print(f"{options.target}: {options.seconds} s with {engine}", flush=True)
    run = with_atheris if engine == "atheris" else with_hypothesis
    run(options.target, options.seconds)


if __name__ == "__main__":
    main()
