"""The engine's programs on a mesh of devices, axes "data" (prompts) and "model" (tensors).

Every program is written for the prompts of one device. On a mesh it runs inside ``shard_map``: each
"data" row of devices has prompt slots of its own and never hears of the others; what the devices of
a "model" group exchange is in the model (``models.parallel``) and in what the samplers ask of the
vocabulary (``vocabulary``). Nothing is ever said about caches: they stay where they are.

How arrays [P, ...] lie:

    each     cut over "data", the same on all devices of a group
    group    contexts and caches: every device has its own, [P * m, ...] in all
    tokens   [P, V]: cut over "data", and over "model" if the vocabulary is
    same     the same everywhere

Letters: P prompts, V vocabulary, m devices of a "model" group.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_power_smc.core.mesh import DATA, DATA_SHARDED, MODEL, PER_DEVICE, REPLICATED, check_mesh
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding
from jax_power_smc.engine.decode import DecodeState, PromptInputs
from jax_power_smc.targets.power import TargetArrays


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model's programs lie on a mesh, or on the one default device.

    Attributes:
      mesh: None for one device.
      model: the language model as one device runs it.
    """

    mesh: Mesh | None
    model: Any

    @property
    def rows(self) -> int:
        """Size of the axis "data": parts into which the prompts are cut."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    @property
    def group(self) -> int:
        """m, size of the axis "model"."""
        return 1 if self.mesh is None else self.mesh.shape[MODEL]

    @property
    def vocabulary(self) -> VocabSharding:
        """How the model's logits lie on the devices of a group."""
        return UNSHARDED if self.mesh is None else getattr(self.model, "vocabulary", UNSHARDED)

    def params(self, params: Any) -> Any:
        """Where the parameters lie: a pytree of specs, or one for all."""
        specs = getattr(self.model, "param_specs", None)
        return REPLICATED if specs is None else specs(params)

    def local(self, params: Any) -> Any:
        """The shapes of the parameters that one device has."""
        if self.mesh is None:
            return params
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                NamedSharding(self.mesh, spec).shard_shape(x.shape),  # type: ignore[arg-type]
                x.dtype,
            ),
            params,
            _to_leaves(self.params(params), params),
        )

    def prompts(self) -> PromptInputs:
        """Of ``PromptInputs``."""
        ends = PartitionSpec(DATA, MODEL) if self.vocabulary.axis else DATA_SHARDED
        target = TargetArrays(*[DATA_SHARDED] * len(TargetArrays._fields))._replace(ends=ends)  # type: ignore[arg-type]
        return PromptInputs(PER_DEVICE, target, DATA_SHARDED, DATA_SHARDED)  # type: ignore[arg-type]

    def state(self) -> DecodeState:
        """Of ``DecodeState``."""
        return DecodeState(*[DATA_SHARDED] * len(DecodeState._fields))._replace(cache=PER_DEVICE)  # type: ignore[arg-type]

    def put(self, tree: Any, specs: Any) -> Any:
        """The arrays where they belong; those that lie there stay as they are.

        Without a mesh they stay where they are, be it on a mesh of which nothing here knows.
        """
        if self.mesh is None:
            return jax.tree.map(_without_axis_types, tree)
        return jax.tree.map(self._put, tree, _to_leaves(specs, tree))

    def _put(self, x: Any, spec: PartitionSpec) -> jax.Array:
        assert self.mesh is not None
        where = NamedSharding(self.mesh, spec)
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(where, x.ndim):
            return x
        if not self.mesh.is_multi_process or (isinstance(x, jax.Array) and _is_on(x, self.mesh)):
            return jax.device_put(x, where)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = self._put(np.asarray(jax.random.key_data(x)), spec)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    def zeros(self, make: Callable[[], Any], specs: Any) -> Any:
        """What ``make`` makes, each part of it on its own device from the beginning."""
        if self.mesh is None:
            return make()
        shapes = jax.eval_shape(make)
        where = jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),  # type: ignore[arg-type]
            _to_leaves(specs, shapes),
        )
        return jax.jit(make, out_shardings=where)()

    def lower(self, function: Any, static: dict[str, Any], args: Any, specs: "Specs") -> Any:
        """Lowers a jitted program of one device, or on a mesh of all of them.

        Args:
          function: what ``jax.jit`` made of a function of arrays and static keyword arguments.
          static: the latter.
          args: the arrays, or their shapes, as they lie on the mesh.
          specs: how they lie.
        """
        if self.mesh is None:
            return function.lower(*args, **static)
        shapes = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape,
                x.dtype,
                sharding=NamedSharding(self.mesh, spec),  # type: ignore[arg-type]
            ),
            args,
            _to_leaves(specs.inputs, args),
        )
        mapped = jax.shard_map(
            functools.partial(inspect.unwrap(function), **static),
            mesh=self.mesh,
            in_specs=specs.inputs,
            out_specs=specs.outputs,
            # It cannot see that the devices of a group, given the same numbers, draw the same.
            check_vma=False,
        )
        options: dict[str, Any] = {"donate_argnums": specs.donated}
        if self.mesh.is_multi_process:
            # No process can look at what only others have.
            everywhere = NamedSharding(self.mesh, REPLICATED)
            options["out_shardings"] = jax.tree.map(
                lambda seen: everywhere if seen else None, specs.seen
            )
        return jax.jit(mapped, **options).lower(*shapes)


class Specs(NamedTuple):
    """How the arguments and results of a program lie.

    Attributes:
      inputs, outputs: prefixes of them with a spec for each leaf.
      seen: bool, or a prefix of the results with bools: what the host looks at.
      donated: the arguments whose memory the results take over.
    """

    inputs: Any
    outputs: Any
    seen: Any
    donated: tuple[int, ...] = ()


ONE_DEVICE = Layout(None, None)


def layout_of(model: Any, mesh: Mesh | None) -> Layout:
    """How a language model's programs lie on a mesh.

    Raises:
      ValueError: if it is no such mesh, or its axis "model" does not suit the model.
    """
    if mesh is None:
        return Layout(None, model)
    check_mesh(mesh)
    # As in ``_without_axis_types``.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    size = mesh.shape[MODEL]
    if size == 1:
        return Layout(mesh, model)
    on = getattr(model, "on", None)
    if on is None:
        raise ValueError(
            f"the mesh has {size} devices on its axis {MODEL!r}, over which a "
            f"{type(model).__name__} cannot be cut; use a mesh with 1 there."
        )
    return Layout(mesh, on(size))


def _without_axis_types(x: Any) -> Any:
    """An array whose type says nothing of how it lies, as programs of one device want it."""
    where = getattr(x, "sharding", None)
    if not isinstance(where, NamedSharding) or not where.mesh.explicit_axes:
        return x
    mesh = Mesh(where.mesh.devices, where.mesh.axis_names)
    return jax.device_put(x, NamedSharding(mesh, where.spec))


def _is_on(x: jax.Array, mesh: Mesh) -> bool:
    return isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh


def _to_leaves(specs: Any, tree: Any) -> Any:
    """A prefix of specs as a tree with a spec for every leaf."""
    return jax.tree.broadcast(specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))
