"""The tensors in a checkpoint's files: their shapes and types, and which of them its model would lack."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from qbert.system.errors import InputError, reason
from qbert.system.terminal import quiet_transformers

FLOATS = ("F32", "F16", "BF16", "F64")
"""The types, as safetensors names them, that the architectures compute in."""


class Tensor(NamedTuple):
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    type: str
    """As safetensors names it."""


def read_headers(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Return every tensor in the safetensors files `paths` by its name.

    Raises:
        InputError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  a file is no mapping
                tensors |= {name: Tensor(tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is damaged ({error}): copy or download it again") from error
    return tensors


@dataclass(frozen=True)
class Fit:
    """How the tensors in files become the weights of a model; transformers itself is asked, without reading them."""

    folder: Path
    """The checkpoint's."""
    stored: Mapping[str, Tensor]
    skeleton: Any
    """The model on torch's meta device."""

    @property
    def body(self) -> str:
        """How the names of the body's weights begin."""
        return f"{self.skeleton.base_model_prefix}."

    @cached_property
    def lacking(self) -> set[str]:
        """Names of the model's weights that are not in the files."""
        return self._lacking(self.renamed) if self._unnamed else set()

    @cached_property
    def renamed(self) -> dict[str, str]:
        """What from_pretrained needs as its `key_mapping`: a pattern of names in the files, and what replaces it.

        A prefix that all names have, as of a wrapper around the model, is left out. An embedding that is stored only
        as the output layer that it is tied to in the language model is read from there.
        """
        if not any(map(self._is_of_body, self._unnamed)):
            return {}
        parts = zip(*(name.split(".")[:-1] for name in self.stored), strict=False)
        common = [same[0] for same in takewhile(lambda part: len(set(part)) == 1, parts)]
        prefixes = [".".join(common[:count]) + "." for count in range(1, len(common) + 1)]
        renamings: list[dict[str, str]] = [{}, *({f"^{re.escape(prefix)}": ""} for prefix in prefixes)]
        lacking = [self._lacking(renaming) for renaming in renamings]
        best = min(range(len(renamings)), key=lambda number: len(lacking[number]))
        prefix = prefixes[best - 1] if best else ""
        tied = self._tied(lacking[best], {name.removeprefix(prefix) for name in self.stored})
        return renamings[best] | {f"^{re.escape(copy)}$": name for copy, name in tied.items()}

    @property
    def said(self) -> str:
        """What to say of `renamed`; empty where there is nothing."""
        stored = {re.sub(r"\\(.)", r"\1", pattern.strip("^$")): name for pattern, name in self.renamed.items()}
        return ", and ".join(
            f"{name} is read from {copy}" if name else f"the prefix {copy} of all names is left out"
            for copy, name in stored.items()
        )

    def check(self, *, new_head: bool) -> None:
        """Raise InputError where the files lack a weight of the model, or have it in a type that is no float's.

        With `new_head` the head's may be missing, and the pooler, which belongs to it: language models are trained
        and saved without one.
        """
        # Old files have the numbers of the positions, which transformers leaves out; asking takes 0.3 s.
        types = {tensor.type for name, tensor in self.stored.items() if not name.endswith("position_ids")}
        for other in sorted(types.difference(FLOATS)):
            if wrong := self._lacking(self.renamed, without=other) - self.lacking:
                raise InputError(
                    f"{self.folder}: {min(wrong)} is stored as {other}, and weights are {', '.join(FLOATS)}: "
                    "give the checkpoint that it was made of"
                )
        if lacking := {name for name in self.lacking if not new_head or self._is_of_body(name)}:
            raise InputError(f"{self.folder}: the weights lack {min(lacking)}, which config.json has: save both again")

    def check_loaded(self, report: Mapping[str, Any], *, new_head: bool, other_shape: bool) -> None:
        """Raise InputError where the files have tensors that do not fit config.json; `report` is of from_pretrained.

        With `new_head` the files may have another head: only layers of the body are compared. With `other_shape` it may
        be of another shape.
        """
        surplus = {name.removeprefix(self.body): name for name in report["unexpected_keys"]}
        if new_head:
            known = {_any_layer(name.removeprefix(self.body)) for name, _ in self.skeleton.named_parameters()}
            surplus = {short: name for short, name in surplus.items() if _any_layer(short) != short}
            surplus = {short: name for short, name in surplus.items() if _any_layer(short) in known}
        elif surplus:  # a classifier may lack some of the body's weights, such as the pooler in RoBERTa's
            import torch
            from transformers import AutoModel

            with torch.device("meta"), quiet_transformers():
                unused = AutoModel.from_config(self.skeleton.config).state_dict().keys()
            surplus = {short: name for short, name in surplus.items() if short not in unused}
        for name, in_file, in_model in sorted(report["mismatched_keys"]):
            if name.startswith(self.body) or not other_shape:
                raise InputError(
                    f"{self.folder}: weights and config.json do not fit ({name} is {tuple(in_file)} and "
                    f"{tuple(in_model)}): save both again"
                )
        if surplus:
            raise InputError(
                f"{self.folder}: the weights have {min(surplus.values())}, which config.json lacks: save both again"
            )

    @cached_property
    def _weights(self) -> set[str]:
        """Names of all that is trained in the model; a buffer of integers is computed."""
        return {name for name, tensor in self.skeleton.state_dict().items() if tensor.is_floating_point()}

    @cached_property
    def _unnamed(self) -> set[str]:
        """Names of weights that the files do not have by that name: mostly none, and transformers need not be asked."""
        return {name for name in self._weights if not {name, name.removeprefix(self.body)} & self.stored.keys()}

    def _is_of_body(self, name: str) -> bool:
        return name.startswith(self.body) and not name.startswith(f"{self.body}pooler.")

    def _lacking(self, renamed: dict[str, str], *, without: str = "") -> set[str]:
        """Return the weights that transformers would not find, `renamed` so; `without` the tensors of that type."""
        import torch

        stored = {name: tensor for name, tensor in self.stored.items() if tensor.type != without}
        try:
            with quiet_transformers():
                _, report = type(self.skeleton).from_pretrained(
                    None,
                    config=self.skeleton.config,
                    state_dict={name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()},
                    device_map={"": "meta"},
                    key_mapping=renamed or None,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
        except Exception as error:  # what transformers raises depends on the files
            raise InputError(
                f"{self.folder}: weights and config.json do not fit ({reason(error)}): save both again"
            ) from error
        return self._weights & set(report["missing_keys"])

    def _tied(self, lacking: set[str], names: set[str]) -> dict[str, str]:
        """Return those of `names` that are tied in a language model to a weight in `lacking`, with that weight."""
        if not any(map(self._is_of_body, lacking)):
            return {}
        import torch
        from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

        tied: dict[str, str] = {}
        for kind in (AutoModelForMaskedLM, AutoModelForPreTraining):
            try:
                with torch.device("meta"), quiet_transformers():
                    pairs = kind.from_config(self.skeleton.config).all_tied_weights_keys
            except ValueError:  # the architecture has no such model
                continue
            tied |= {copy: name for copy, name in pairs.items() if name in lacking and copy in names}
        return tied


def _any_layer(name: str) -> str:
    """Return `name` as it is for any layer."""
    return re.sub(r"\.\d+\.", ".N.", name)
