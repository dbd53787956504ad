"""Triton's interpreter without what it does over and over: results are the same, in half the time.

Every call of a device function looks through all names of ``triton.language`` for functions to replace,
though those of the launch are replaced already, and every operation makes a table of dtypes.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Replace two functions of the interpreter, where it has them as in Triton 3.7; else nothing changes."""
    from triton.runtime import interpreter

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
