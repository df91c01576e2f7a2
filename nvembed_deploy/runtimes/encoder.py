"""This file owns `Encoder`, the one `encode` that users call, with sentence-transformers' habits.

It turns inputs and options into texts and prompts, and rows into the format asked for. Batches
and windows are `streaming.py`'s, tokens `text.py`'s, arithmetic the runtime's.
Legend: N and M texts, D hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nvembed_deploy.errors import InputError
from nvembed_deploy.runtimes.batching import BatchLimits
from nvembed_deploy.runtimes.embedding_precision import check_precision, quantize_embeddings
from nvembed_deploy.runtimes.encoder_values import checked, tensor_of, texts_of, unit_rows
from nvembed_deploy.runtimes.progress import progress_bar
from nvembed_deploy.runtimes.protocol import Runtime
from nvembed_deploy.runtimes.streaming import Stream
from nvembed_deploy.runtimes.whole import whole
from nvembed_deploy.spec import MIN_TOKENS, ModelSpec
from nvembed_deploy.text import Tokenizer

QUERY_PROMPT = "query"
DOCUMENT_PROMPTS = ("document", "passage", "corpus")

logger = logging.getLogger(__name__)


class Encoder:
    """Texts in, embeddings out. Made by `load_encoder`; also a context manager."""

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        spec: ModelSpec,
        limits: BatchLimits | None = None,
    ) -> None:
        """Join a runtime with the text rules of its model.

        Args:
            runtime: what computes; it belongs to this encoder, which closes it.
            tokenizer: the model's own.
            spec: the model.
            limits: what one batch may hold.
        """
        self.runtime = runtime
        self.tokenizer = tokenizer
        self.spec = spec
        self.limits = limits or BatchLimits()

    @property
    def prompts(self) -> dict[str, str]:
        """Literal prefixes by name, as the artifact states them."""
        return dict(self.spec.prompts)

    @property
    def max_seq_length(self) -> int:
        """The most tokens of one text, instruction and special tokens included."""
        return min(self.spec.text.max_tokens, self.runtime.max_tokens)

    def get_embedding_dimension(self) -> int:
        """Return D, the size of an embedding."""
        return self.spec.backbone.hidden_size

    get_sentence_embedding_dimension = get_embedding_dimension
    """The older name, which other libraries call."""

    def encode(  # noqa: PLR0913 - sentence-transformers' signature, which callers know
        self,
        inputs: str | Sequence[str] | NDArray[np.str_],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
    ) -> Any:  # noqa: ANN401 - the flags decide: array, list of arrays or tensor
        """Embed texts. Equal texts give equal rows, whatever is beside them.

        Args:
            inputs: one text, or a list, array or column of them.
            prompt_name: a key of `prompts`.
            prompt: a literal prefix, which is not pooled; it beats `prompt_name`.
            batch_size: most texts in a batch; None leaves it to the token budget.
            show_progress_bar: None shows one for long work when logging at INFO.
            precision: float32, int8, uint8, binary or ubinary.
            convert_to_numpy: an array; False gives a list of 1-D arrays.
            convert_to_tensor: a torch tensor instead.
            normalize_embeddings: unit length after truncation. The graph itself normalises, so
                False matters only with `truncate_dim`.
            truncate_dim: keep the first dimensions only. NV-Embed was not trained for it: measure.
            instruction: what the task is, as NV-Embed's own `encode` takes it; the model's
                template is put around it.
            max_length: tokens after which a text is cut, at most `max_seq_length`.

        Returns:
            [N, D] in the order of `inputs`, or [D] for a single text.

        Raises:
            InputError: an argument cannot be used.
            ArtifactError: an embedding is not finite.
        """
        check_precision(precision)
        texts, width = texts_of(inputs), self._width(truncate_dim)
        prefix = self._prefix(prompt_name, prompt, instruction)
        stream = self._stream(prefix, batch_size, max_length)
        rows_ND = np.empty((len(texts), width), dtype=np.float32)
        done = 0
        with progress_bar(len(texts), show_progress_bar) as advance:
            for window_ND in stream.embed(texts, advance):
                rows_ND[done : done + len(window_ND)] = window_ND[:, :width]
                done += len(window_ND)
        if normalize_embeddings and truncate_dim is not None:
            rows_ND = unit_rows(rows_ND)
        codes = quantize_embeddings(rows_ND, precision)
        codes = codes[0] if isinstance(inputs, str) else codes
        if convert_to_tensor:
            return tensor_of(codes)
        return codes if convert_to_numpy or isinstance(inputs, str) else list(codes)

    def encode_stream(  # noqa: PLR0913 - encode's own
        self,
        inputs: Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        total: int | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        instruction: str | None = None,
        max_length: int | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Embed any number of texts in memory that does not grow with them.

        Args:
            inputs: texts; a generator may be endless. They are taken some 16,000 ahead.
            prompt_name: as `encode` has it; likewise those below, but for `total`.
            prompt: a literal prefix.
            batch_size: most texts in a batch.
            show_progress_bar: whether to show one.
            total: how many texts there are, for the progress bar, if it is known.
            normalize_embeddings: unit length after truncation.
            truncate_dim: keep the first dimensions only.
            instruction: what the task is.
            max_length: tokens after which a text is cut.

        Returns:
            An iterator over float32 [n, D], in the order of `inputs`, of some thousand rows each.

        Raises:
            InputError: an argument cannot be used, or, as it is reached, an input is no string.
            ArtifactError: an embedding is not finite.
        """
        if isinstance(inputs, str) or not isinstance(inputs, Iterable):
            what = "one string" if isinstance(inputs, str) else f"a {type(inputs).__name__}"
            raise InputError(f"inputs is {what}", "pass a list or a generator of strings")
        prefix = self._prefix(prompt_name, prompt, instruction)
        stream = self._stream(prefix, batch_size, max_length)
        width, texts = self._width(truncate_dim), checked(inputs)
        is_cut = normalize_embeddings and truncate_dim is not None

        def rows() -> Iterator[NDArray[np.float32]]:
            with progress_bar(total, show_progress_bar) as advance:
                for window_ND in stream.embed(texts, advance):
                    yield unit_rows(window_ND[:, :width]) if is_cut else window_ND[:, :width]

        return rows()

    def encode_query(
        self,
        inputs: str | Sequence[str] | NDArray[np.str_],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,  # noqa: ANN401 - encode's own
    ) -> Any:  # noqa: ANN401 - as encode
        """Embed queries: `encode` with the prompt "query" unless another prefix is given."""
        given = (prompt_name, prompt, options.get("instruction"))
        name = self._default_prompt((QUERY_PROMPT,), given)
        if name is None and all(value is None for value in given):
            logger.warning("this model has no prompt %r: give an instruction", QUERY_PROMPT)
        return self.encode(inputs, name, prompt, **options)

    def encode_document(
        self,
        inputs: str | Sequence[str] | NDArray[np.str_],
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,  # noqa: ANN401 - encode's own
    ) -> Any:  # noqa: ANN401 - as encode
        """Embed documents: `encode` with the first of `DOCUMENT_PROMPTS` there is, if any."""
        given = (prompt_name, prompt, options.get("instruction"))
        name = self._default_prompt(DOCUMENT_PROMPTS, given)
        return self.encode(inputs, name, prompt, **options)

    def similarity(self, left: ArrayLike, right: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of every pair, float32 [N, M], of [N, D] (or [D]) and [M, D]."""
        return unit_rows(left) @ unit_rows(right).T

    def similarity_pairwise(self, left: ArrayLike, right: ArrayLike) -> NDArray[np.float32]:
        """Return the cosine of each row with its counterpart, float32 [N], of two [N, D]."""
        cosine_N: NDArray[np.float32] = np.sum(unit_rows(left) * unit_rows(right), axis=-1)
        return cosine_N

    def close(self) -> None:
        """Free the runtime's memory."""
        self.runtime.close()

    def __enter__(self) -> Self:
        """Return the encoder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the encoder."""
        self.close()

    def _stream(
        self, prefix: dict[str, str], batch_size: int | None, max_length: int | None
    ) -> Stream:
        tokenize = partial(
            self.tokenizer.tokenize, max_tokens=self._max_tokens(max_length), **prefix
        )
        return Stream(
            runtime=self.runtime,
            tokenize=tokenize,
            pad_id=self.spec.text.pad_id,
            limits=self.limits.with_batch_size(batch_size),
            width=self.get_embedding_dimension(),
        )

    def _default_prompt(self, names: tuple[str, ...], given: tuple[str | None, ...]) -> str | None:
        if any(value is not None for value in given):
            return given[0]
        return next((name for name in names if name in self.spec.prompts), None)

    def _prefix(
        self, prompt_name: str | None, prompt: str | None, instruction: str | None
    ) -> dict[str, str]:
        """Say what comes before each text, as keywords of `Tokenizer.tokenize`."""
        if instruction is not None and (prompt is not None or prompt_name is not None):
            raise InputError(
                "both an instruction and a prompt were given",
                "give instruction= (the template is applied) or prompt= (taken literally)",
            )
        if instruction is not None:
            return {"instruction": instruction}
        if prompt is not None:
            if prompt_name is not None:
                logger.warning("prompt is used, prompt_name=%r is not", prompt_name)
            return {"prompt": prompt}
        if prompt_name is None:
            return {}
        names = sorted(self.spec.prompts)
        if prompt_name not in names:
            raise InputError(
                f"prompt_name is {prompt_name!r}, expected one of {names}",
                "use one of these names, or prompt= for a prefix or instruction= for a task",
            )
        return {"prompt": self.spec.prompts[prompt_name]}

    def _width(self, truncate_dim: int | None) -> int:
        width = self.get_embedding_dimension()
        if truncate_dim is None:
            return width
        return whole("truncate_dim", truncate_dim, "leave it out for all dimensions", most=width)

    def _max_tokens(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_seq_length
        return whole(
            "max_length",
            max_length,
            "leave it out for as many as there are (export --max-tokens says how many)",
            least=MIN_TOKENS,
            most=self.max_seq_length,
        )
