"""Triton's interpreter without what it does over and over: results are the same, in half the time.

Every call of a device function looks through all names of ``triton.language`` for functions to replace,
though those of the launch are replaced already, and every operation makes a table of dtypes, and types and
shapes of its operands anew.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Replace some functions of the interpreter, where it has them as in Triton 3.7; else nothing changes."""
    from triton.language import semantic
    from triton.runtime import interpreter

    _make_types_once(interpreter.tl.core, semantic)

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "_get_np_dtype")):
        return
    patch, numpy_dtype = interpreter._patch_lang, interpreter._get_np_dtype
    language = (interpreter.tl, interpreter.tl.core)
    numpy_dtypes: dict[str, Any] = {}
    scope_type = interpreter._LangPatchScope
    # By the address of a function's namespace, kept alive so that no other takes its place.
    modules_of: dict[int, tuple[dict[str, Any], tuple[bool, ...]]] = {}
    patched: set[tuple[bool, ...]] = set()  # in this launch

    def known_dtype(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, interpreter.tl.block_type) else dtype
        if type(scalar) is not interpreter.tl.dtype:  # a pointer
            return numpy_dtype(dtype)
        if scalar.name not in numpy_dtypes:
            numpy_dtypes[scalar.name] = numpy_dtype(scalar)
        return numpy_dtypes[scalar.name]

    class Scope(scope_type):  # type: ignore[misc, valid-type]
        def restore(self) -> None:
            patched.clear()
            super().restore()

    def patch_once(fn: Any) -> Any:
        names = fn.__globals__
        if id(names) not in modules_of:
            values = list(names.values())
            modules_of[id(names)] = names, tuple(any(value is m for value in values) for m in language)
        modules = modules_of[id(names)][1]
        if modules in patched:
            return Scope()
        patched.add(modules)
        return patch(fn)

    interpreter._get_np_dtype = known_dtype
    interpreter._LangPatchScope = Scope
    interpreter._patch_lang = patch_once


def _make_types_once(core: Any, semantic: Any) -> None:
    """One ``block_type`` for each dtype and shape, and with it the shape of all tensors that are of it."""
    made: dict[tuple[Any, ...], Any] = {}
    init_type, init_tensor = core.block_type.__init__, core.tensor.__init__

    def new_type(cls: Any, element_ty: Any, shape: Any) -> Any:
        if type(element_ty) is not core.dtype:  # a pointer, of which others may have the name
            return object.__new__(cls)
        sizes = shape.values if type(shape) is core.tuple else shape
        key = (element_ty.name, *[size.value if type(size) is core.constexpr else size for size in sizes])
        if key not in made:
            made[key] = object.__new__(cls)
        return made[key]

    def init_once(self: Any, element_ty: Any, shape: Any) -> None:
        if "numel" not in self.__dict__:
            init_type(self, element_ty, shape)

    def init_from_type(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__.get("_of_tensors")
        if known is None:
            init_tensor(self, handle, type)
            type._of_tensors = self.shape, self.numel, self.dtype
            return
        self.handle, self.type = handle, type
        self.shape, self.numel, self.dtype = known

    operations = semantic.TritonSemantic
    broadcast, cast = operations.broadcast_impl_value, operations.cast

    def broadcast_if_needed(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape.values == rhs.type.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    def cast_if_needed(self: Any, input: Any, dst_ty: Any, *rounding: Any, **keywords: Any) -> Any:
        return (
            input if input.type.scalar is dst_ty.scalar else cast(self, input, dst_ty, *rounding, **keywords)
        )

    operations.broadcast_impl_value, operations.cast = broadcast_if_needed, cast_if_needed
    core.block_type.__new__ = new_type
    core.block_type.__init__ = init_once
    core.tensor.__init__ = init_from_type
