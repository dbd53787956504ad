"""On how many threads the demo works."""

from __future__ import annotations

import pytest
import torch

import models.demo as demo


@pytest.mark.parametrize(
    ("environment", "threads"),
    [({}, 1), ({"OMP_NUM_THREADS": ""}, 1), ({"OMP_NUM_THREADS": "2"}, 2)],
    ids=str,
)
def test_it_works_on_one_thread_unless_told_otherwise(
    environment: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.choose_threads(environment) == threads
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen: list[int] = []

    def stop(config: object) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "load_data", stop)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyboardInterrupt):
            demo.main()
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


@pytest.mark.parametrize("asked", ["0", "-1", "two"])
def test_a_number_of_threads_that_is_none(asked: str) -> None:
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS is '{asked}'; accepted: an integer of at least 1"):
        demo.choose_threads({"OMP_NUM_THREADS": asked})
