"""What a process that ``precompile.py`` spawns runs; it is imported there by name."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .. import layers, work
from ..peers import our_search, search_peers
from .cases import Case, check_case
from .target import Target, open_target


@dataclass(frozen=True)
class Contender:
    """A row of the table of ``bench.py``: a search, or with ``contender`` ``"step"`` the layer."""

    case: work.Case
    contender: str

    def __str__(self) -> str:
        return f"{self.contender} {self.case.shape}"

    def call(self, target: Target) -> None:
        """Prepare it and call it once."""
        x, codebook = work.make_inputs(self.case, target.device)
        if self.contender == "step":
            layer = layers.our_layer(self.case, target.device)
            layers.training_step(layer, x[None].requires_grad_())()
        elif self.contender.startswith("vq_kernels"):
            our_search(x, codebook, precision=self.contender.split()[1])()
        else:
            (peer,) = [p for p in search_peers(target.device, x.dtype) if p.name == self.contender]
            if peer.reason is None:
                peer.prepare(x, codebook)()
        target.synchronize()


def call_once(job: Case | Contender, target: Target) -> tuple[str, float, str | None]:
    """The job's name, the seconds of its call and compilations, and its error; wrong results are none."""
    open_target(target.is_rehearsal, "compiling")
    start, error = time.monotonic(), None
    try:
        if isinstance(job, Contender):
            job.call(target)
        else:
            check_case(job, "triton", target)
    except AssertionError:
        pass
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return str(job), time.monotonic() - start, error
