"""Memory that a network needs, found without running it: its operations on fake tensors, which have
shapes and no numbers.

Counted are tensors that live at one time. What a device takes beside them (its context, workspaces
of its kernels, gaps between allocations) is not.
"""

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.made_networks import example_inputs


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations have made and nothing has freed yet:

    `live` now, `peak` at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._seen.add(
                    leaf.untyped_storage()
                )  # what came from outside, such as a weight, is not counted
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, n_bytes: int) -> None:
        self.live -= n_bytes


def fake_copy(network: nn.Module, mode: FakeTensorMode, device: str) -> nn.Module:
    """The network with fake tensors on `device`, without hooks; whatever it weighs, this takes no
    memory.
    """
    memo: dict[int, Any] = {}
    with mode:
        for tensor in [*network.parameters(), *network.buffers()]:
            fake: Tensor = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
            )
            memo[id(tensor)] = (
                nn.Parameter(fake, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else fake
            )
    twin = copy.deepcopy(network, memo)
    for module in twin.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return twin


def call_bytes(
    network: Any,
    batch: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    train: bool,
    device: str = "cpu",
) -> int:
    """Bytes that one call of the network takes beside its weights, at the worst moment; with
    `train`, one iteration's: forward, backward, and the gradients of what requires one.

    dtype: of autocast.  device: whose operations and autocast rules to follow; a CUDA device must
        be there for `train`.
    """
    mode = FakeTensorMode()
    twin: Any = fake_copy(network, mode, device)
    with mode, torch.set_grad_enabled(train):
        inputs = example_inputs(network, batch, height, width, device)
        with LiveBytes() as memory:
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                output = twin(**inputs, return_dict=False)[0]
            if train:
                output.float().square().mean().backward()
    return memory.peak


def weight_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])
