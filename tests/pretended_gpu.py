"""A device that is not there, with values: what torch says of a GPU, on a machine without one.

Its tensors are computed in memory and say that they are on torch's ``meta`` device, which no value can be read from.
Here they can: each time that Python reads one is counted, as it would make a GPU's queue wait. An operation of tensors
here and in memory raises, as it would on a GPU.
"""

import contextlib

import torch
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from vi_reparam_pyro.ops import noise

DEVICE = torch.device("meta")

READS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::unique",
    "aten::_unique2",
    "aten::repeat_interleave",
}
"""What waits for a GPU, but for copies to memory, which are counted too."""

MIXED = {"aten::_to_copy", "aten::copy_", "aten::_assert_async"}
"""What takes tensors of two devices."""


_ON = []


class OnGpu(torch.Tensor):
    """A tensor in memory that says it is elsewhere."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _ON[-1].__torch_dispatch__(func, types, args, kwargs)  # where torch leaves its mode aside


proxy_tensor.HANDLED_TYPES = (*proxy_tensor.HANDLED_TYPES, OnGpu)


class PretendedGpu(TorchDispatchMode):
    """Runs what is asked of the device; `reads` are the operations that waited for it."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # below the mode that writes a graph down, as what computes is

    def __init__(self):
        super().__init__()
        self.reads = []
        self.shape_env = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name
        if func.namespace == "vi_reparam":  # operators of ours are made of torch's
            with contextlib.nullcontext() if torch._C._get_dispatch_mode(self._mode_key) else self:
                return getattr(noise, "_" + func._schema.name.split("::")[1])(*args, **kwargs)
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in leaves if isinstance(x, OnGpu)]
        asked = kwargs.get("device")
        there = torch.device(asked).type if asked is not None else None
        if not here and there != "meta":
            return func(*args, **kwargs)
        strangers = [x for x in leaves if not isinstance(x, OnGpu) and x.dim()]
        if name == "aten::index.Tensor" or name.startswith("aten::index"):
            strangers = [x for x in strangers if x.dtype not in (torch.int64, torch.bool)]
        if here and strangers and name not in MIXED:
            raise RuntimeError(f"{name}: expected all tensors on one device, found meta and cpu")
        masks = name.startswith("aten::index") and any(x.dtype in (torch.bool, torch.uint8) for x in leaves[1:])
        to_memory = name == "aten::_to_copy" and there == "cpu"
        into_memory = name == "aten::copy_" and not isinstance(args[0], OnGpu)
        if name in READS or masks or to_memory or into_memory:
            self.reads.append(name)
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        plain_args, plain_kwargs = tree_map(lambda x: x.held if isinstance(x, OnGpu) else x, (args, kwargs))
        found = func(*plain_args, **plain_kwargs)
        if to_memory or into_memory or name == "aten::_local_scalar_dense":
            return found
        found = tree_map(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu) else x, found)
        return return_and_correct_aliasing(func, args, kwargs, found) if here else found


class FromPython(TorchFunctionMode):
    """Numbers of Python's and NumPy's made tensors: torch never asks a `meta` device for them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None)
        if func not in (torch.tensor, torch.as_tensor, torch.asarray):
            return func(*args, **kwargs) if device is None else func(*args, device=device, **kwargs)
        given = isinstance(args[0], torch.Tensor) and func is not torch.tensor and device is None
        wanted = args[0].device if given else torch.device(device or torch.get_default_device())
        if isinstance(args[0], torch.Tensor):
            made = args[0].to(kwargs.get("dtype") or args[0].dtype)
            return (made.clone() if func is torch.tensor else made).to(wanted)
        return func(*args, device="cpu", **kwargs).to(wanted)


@contextlib.contextmanager
def pretended_gpu():
    """Inside there is such a device; yields it."""
    with FromPython(), PretendedGpu() as device:
        _ON.append(device)
        try:
            yield device
        finally:
            _ON.pop()
