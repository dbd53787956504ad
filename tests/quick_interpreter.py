"""Triton's interpreter without what it does over and over: results are the same, in a fraction of the time.

Every call of a device function looks through all names of ``triton.language`` for functions to replace,
though those of the launch are replaced already, and every operation makes a table of dtypes, types and
shapes of its operands and tensors of constants anew, and goes through three functions that only hand it on.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Replace some functions of the interpreter, where it has them as in Triton 3.7; else nothing changes."""
    from triton.language import semantic
    from triton.runtime import interpreter

    core = interpreter.tl.core
    _make_types_once(core, semantic)

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

    builtin = core.add.__code__  # of the function that decorates each builtin, and only asks for its keyword

    def patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        direct = member.__wrapped__ if getattr(member, "__code__", None) is builtin else member
        given = interpreter.interpreter_semantic

        def call(*arguments: Any, _semantic: Any = None, **keywords: Any) -> Any:
            return direct(*arguments, _semantic=given, **keywords)

        scope.set_attr(obj, name, call)

    interpreter._get_np_dtype = known_dtype
    if hasattr(interpreter, "_patch_attr") and hasattr(interpreter, "interpreter_semantic"):
        interpreter._patch_attr = patch_attr
        _make_constants_once(core, semantic)
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


def _make_constants_once(core: Any, semantic: Any) -> None:
    """One tensor for each number, dtype and shape; operands that fit each other stay as they are."""
    operations = semantic.TritonSemantic
    check, constant, sanitize = (
        operations.binary_op_type_checking_impl,
        operations.scalar_constant,
        operations.binary_op_sanitize_overflow_impl,
    )
    unwrap = core._unwrap_if_constexpr
    # Two of one of these stay what they are, whatever is done with them.
    plain = {"fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    narrow = {"int1", "fp16", "bf16"}  # likewise, but in a division
    as_they_are = {core.tensor, int, float, bool, str, type(None)}
    constants: dict[tuple[Any, ...], Any] = {}

    def known(key: tuple[Any, ...], make: Any) -> Any:
        """Handles are shared, and so are not to be written to; tensors are not."""
        if key not in constants:
            if len(constants) > 2000:
                constants.clear()
            constants[key] = made = make()
            made.handle.data.setflags(write=False)
        return core.tensor(constants[key].handle, constants[key].type)

    def known_constant(self: Any, value: Any, dtype: Any) -> Any:
        if type(dtype) is not core.dtype or type(value) not in (int, float, bool):
            return constant(self, value, dtype)
        return known((value or repr(value), dtype.name), lambda: constant(self, value, dtype))  # 0.0 == -0.0

    def check_if_needed(self: Any, lhs: Any, rhs: Any, *options: Any, **keywords: Any) -> Any:
        if type(lhs) is not core.tensor:
            return check(self, lhs, rhs, *options, **keywords)
        kind = lhs.type
        scalar = kind.scalar
        if type(rhs) is core.tensor:
            other = rhs.type
            if type(scalar) is core.dtype:
                name = scalar.name
                fits = name in plain or (name in narrow and len(options) < 4 and not keywords)
                if fits and (
                    kind is other or (type(kind) is type(other) is core.dtype and name == other.name)
                ):
                    return lhs, rhs
                if (
                    fits
                    and type(kind) is core.block_type
                    and type(other) is core.dtype
                    and name == other.name
                ):
                    return lhs, core.tensor(self.builder.create_splat(kind, rhs.handle), kind)
            elif (
                options[:1] == (True,)
                and type(kind) is type(other) is core.block_type
                and (other.element_ty.is_int() and kind.shape.values == other.shape.values)
            ):
                return lhs, rhs  # pointers, and what is added to them
        elif type(rhs) in (int, float) and type(scalar) is core.dtype and scalar.name in plain:
            # The number takes part as a tensor of this type, unless checking finds that it is another.
            key = (
                rhs or repr(rhs),
                type(rhs),
                id(kind) if kind is not scalar else scalar.name,
                options,
                *keywords.items(),
            )
            if key not in constants:
                left, right = check(self, lhs, rhs, *options, **keywords)
                if left is not lhs:
                    return left, right
                return lhs, known(key, lambda: right)
            return lhs, known(key, None)
        return check(self, lhs, rhs, *options, **keywords)

    def sanitize_if_asked(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        if self.builder.options.debug:  # without it nothing is asserted in the end
            sanitize(self, lhs, rhs, operation)

    def unwrap_if_needed(value: Any) -> Any:
        return value if type(value) in as_they_are else unwrap(value)

    operations.scalar_constant = known_constant
    operations.binary_op_type_checking_impl = check_if_needed
    operations.binary_op_sanitize_overflow_impl = sanitize_if_asked
    core._unwrap_if_constexpr = unwrap_if_needed
