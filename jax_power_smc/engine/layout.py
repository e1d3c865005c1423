"""The engine's programs on a mesh of devices, axes "data" (prompts) and "model" (tensors).

Every program is written for the prompts of one device. On a mesh it runs inside ``shard_map``. Each
data shard (the devices at one index of "data") has its own prompt slots and never communicates with
the others. What its devices exchange is in the model (``models.transformer.tensor_parallel``) and
in what samplers ask of the vocabulary (``core.vocab_sharding``). Caches are never resharded.

How arrays [P, ...] and [R, ...] are sharded:

    DATA_SHARDED   over "data"; the same on all devices of a data shard
    PER_DEVICE     caches: every device has its own, [R m, ...] in total
    [E, V]         end sets: over "model" if the vocabulary is
    REPLICATED     the same everywhere

Letters: P prompts, R rows, V vocabulary, m devices of a data shard.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_power_smc.core.mesh import DATA, MODEL, REPLICATED, check_mesh
from jax_power_smc.core.vocab_sharding import UNSHARDED, VocabSharding


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model's programs are laid out on a mesh, or on the one default device.

    Attributes:
      mesh: None for one device.
      model: the language model as one device runs it.
      source: the language model that the caller passed, of which ``model`` is one shard.
    """

    mesh: Mesh | None
    model: Any
    source: Any = None

    @property
    def data_shards(self) -> int:
        """Size of the axis "data"."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    @property
    def model_shards(self) -> int:
        """m, size of the axis "model"."""
        return 1 if self.mesh is None else self.mesh.shape[MODEL]

    @property
    def vocabulary(self) -> VocabSharding:
        """How the last axis of the model's logits is sharded."""
        return UNSHARDED if self.mesh is None else getattr(self.model, "vocabulary", UNSHARDED)

    def params(self, params: Any) -> Any:
        """How the parameters are sharded: a pytree of specs, or one for all."""
        specs = getattr(self.model, "param_specs", None)
        return REPLICATED if specs is None else specs(params)

    def local(self, params: Any) -> Any:
        """The shapes of one device's part of the parameters."""
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

    @property
    def logits(self) -> PartitionSpec:
        """How arrays [..., V] with one more axis are sharded."""
        return PartitionSpec(None, MODEL) if self.vocabulary.axis else REPLICATED

    def put(self, tree: Any, specs: Any) -> Any:
        """The arrays placed according to their specs; those that are already are not copied.

        Without a mesh they stay where they are, even if that is some other mesh.
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
        """What ``make`` returns, each part of it created on its own device."""
        if self.mesh is None:
            return make()
        shapes = jax.eval_shape(make)
        where = jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),  # type: ignore[arg-type]
            _to_leaves(specs, shapes),
        )
        return jax.jit(make, out_shardings=where)()

    def lower(self, function: Any, static: dict[str, Any], args: Any, specs: "Specs") -> Any:
        """Lowers a program for one device, or for all devices of the mesh.

        Args:
          function: of arrays and static keyword arguments.
          static: the latter.
          args: the arrays, or their shapes, of the whole mesh.
          specs: how they are sharded.
        """
        # A function object of its own: what JAX caches for it goes when the executable does.
        body = functools.partial(function, **static)
        if self.mesh is None:
            return jax.jit(body, donate_argnums=specs.donated).lower(*args)
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
            body,
            mesh=self.mesh,
            in_specs=specs.inputs,
            out_specs=specs.outputs,
            # It cannot know that the devices of a data shard, given equal numbers, draw the same.
            check_vma=False,
        )
        options: dict[str, Any] = {"donate_argnums": specs.donated}
        if self.mesh.is_multi_process:
            # No process can read what only others have.
            everywhere = NamedSharding(self.mesh, REPLICATED)
            options["out_shardings"] = jax.tree.map(
                lambda read: everywhere if read else None, specs.host_reads
            )
        return jax.jit(mapped, **options).lower(*shapes)


class Specs(NamedTuple):
    """How the arguments and results of a program are sharded.

    Attributes:
      inputs, outputs: pytree prefixes of specs.
      host_reads: bool, or a pytree prefix of bools: the results that the host reads.
      donated: indices of the arguments whose memory the results reuse.
    """

    inputs: Any
    outputs: Any
    host_reads: Any
    donated: tuple[int, ...] = ()


ONE_DEVICE = Layout(None, None)


def layout_of(model: Any, mesh: Mesh | None) -> Layout:
    """How a language model's programs are laid out on a mesh.

    Raises:
      ValueError: for a mesh with other axes, or a size of "model" that does not suit the model.
    """
    if mesh is None:
        return Layout(None, model, model)
    check_mesh(mesh)
    # As in ``_without_axis_types``.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    size = mesh.shape[MODEL]
    if size == 1:
        return Layout(mesh, model, model)
    on = getattr(model, "on", None)
    if on is None:
        raise ValueError(
            f"the mesh has {size} devices on its axis {MODEL!r}, but a {type(model).__name__} "
            "cannot be sharded; use a mesh with 1 there."
        )
    return Layout(mesh, on(size), model)


def _without_axis_types(x: Any) -> Any:
    """The array without its sharding in its type, as programs for one device need it."""
    where = getattr(x, "sharding", None)
    if not isinstance(where, NamedSharding) or not where.mesh.explicit_axes:
        return x
    mesh = Mesh(where.mesh.devices, where.mesh.axis_names)
    return jax.device_put(x, NamedSharding(mesh, where.spec))


def _is_on(x: jax.Array, mesh: Mesh) -> bool:
    return isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh


def _to_leaves(specs: Any, tree: Any) -> Any:
    """A pytree prefix of specs as a tree with a spec for every leaf."""
    return jax.tree.broadcast(specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec))
