"""A joiner's planes under autograd."""

from __future__ import annotations

from torch import Tensor

from pathsum.lattice import ArcLattice
from pathsum.torch._autograd.lattices import differentiable, grid_tensors
from pathsum.torch._ops.arrays import as_tensor
from pathsum.torch._ops.joint_scores import joint_scores_backward, joint_scores_forward
from pathsum.torch.joiner import Joiner

# A gate is of posteriors, and the samples' upstream gradient of first gradients: neither may meet the gradients of a
# gradient.
differentiable(
    joint_scores_forward,
    joint_scores_backward,
    None,
    num_inputs=4,
    num_losses=2,
    reason="impl='numba' has first derivatives only of a loss of a Joiner; for create_graph=True and forward mode give "
    "its logits, Joiner.logits(), or impl='reference'",
)


def joint_scores(
    joiner: Joiner, lattice: ArcLattice, classes: tuple[int, ...], *, lone: int, logits: bool, clamp: float
) -> tuple[Tensor, Tensor]:
    """Planes (K, rows) of the log-softmax of a joiner's logits, and zeros (N,) that stand for the samples.

    The upstream gradient of each loss must come back through the latter, as it must for ``row_scores`` with a clamp.
    """
    assert logits, "a joiner makes logits"
    tensors = [*grid_tensors(lattice), *map(as_tensor, (lattice.first_frames, lattice.last_frames))]
    options = (list(classes), lone, joiner.activation, int(joiner.tile_memory), clamp, joiner.gate)
    planes, samples = joint_scores_forward(*joiner.operands, *tensors, *options)
    return planes, samples
