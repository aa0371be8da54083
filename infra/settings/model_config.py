"""The settings of a model: what the files in models/configs hold, checked where they are built."""

from __future__ import annotations

from dataclasses import dataclass

from infra.settings.fields import ConfigError, check_fields, dashed, flag

ARCHITECTURES = ("dlrm", "wnd", "mtwnd", "ncf", "din", "dien")


@dataclass(frozen=True)
class ModelConfig:
    """Model architecture (the files in models/configs set these)."""

    model_type: str = flag("dlrm", "architecture", ARCHITECTURES)
    model_name: str = flag(
        "", "name in reports and device profiles: rm1 rm2 rm3 ncf wnd mtwnd din dien"
    )
    arch_variant: str = flag(
        "caffe2", "what the released nets compute, or the published one", ("caffe2", "paper")
    )
    arch_sparse_feature_size: int = flag(2, "embedding width D", low=1)
    arch_embedding_size: str = flag("4-3-2", "rows of each table, dash-separated")
    arch_mlp_bot: str = flag(
        "4-3-2", "bottom MLP widths, the first = dense features; DIN: attention unit's hidden"
    )
    arch_mlp_top: str = flag("4-2-1", "top MLP widths; the model prepends the input width")
    arch_mlp_tasks: str = flag(
        "4-2-1", "MT-WnD: widths of each task's MLP, the first = last of arch_mlp_top"
    )
    num_multi_tasks: int = flag(1, "MT-WnD: number of task MLPs", low=1)
    hidden_size: int = flag(64, "DIEN: hidden width of the recurrent cells", low=1)
    arch_interaction_op: str = flag("dot", "DLRM: feature interaction", ("dot", "cat"))
    arch_interaction_itself: bool = flag(False, "DLRM dot: include self products")
    user_behavior_tables: int = flag(
        1000, "DIN: copies of the behaviour table (the 2nd of four tables)", low=1
    )
    num_indices_per_lookup: int = flag(10, "ids per bag (pooling factor)", low=1)
    num_indices_per_lookup_fixed: bool = flag(
        False, "every bag has exactly that many ids, else 1 to that many"
    )
    table_scale: float = flag(
        1.0, "fraction of each table's rows to keep (never fewer than a bag's ids)", above=0, high=1
    )
    embedding_operator: str = flag(
        "fused", "one look-up over all tables, or one a table", ("fused", "per_table")
    )
    embedding_plan: str = flag(
        "", "plan of `python -m models.embedding.tuner`: one schedule a table, by batch size"
    )
    fused: str = flag(
        "on", "off: operator by operator and table by table, as the release runs", ("on", "off")
    )
    dtype: str = flag(
        "float32",
        "type of large MLPs on the CPU; tables and scores stay float32",
        ("float32", "bfloat16"),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("arch_mlp_bot", "arch_mlp_top", "arch_mlp_tasks"):
            dashed(name, getattr(self, name))
        if self.embedding_plan and (self.fused == "off" or self.embedding_operator == "per_table"):
            rival = "fused off" if self.fused == "off" else "embedding_operator per_table"
            raise ConfigError(
                "embedding_plan", f"is set, and so is {rival}; a plan chooses the operators itself"
            )
        rows = dashed("arch_embedding_size", self.arch_embedding_size)
        self._check_shapes(len(rows))
        if self.num_indices_per_lookup_fixed and min(rows) < self.num_indices_per_lookup:
            raise ConfigError(
                "num_indices_per_lookup",
                f"is {self.num_indices_per_lookup}, but a table has {min(rows)} rows and a bag's "
                "ids all differ",
            )

    def _check_shapes(self, n_tables: int) -> None:
        """Raise ConfigError if an MLP or the tables do not fit the architecture."""
        match self.model_type:
            case "dlrm" if (
                self.arch_interaction_op == "dot"
                and self.bot_widths[-1] != self.arch_sparse_feature_size
            ):
                raise ConfigError(
                    "arch_mlp_bot",
                    f"ends in {self.bot_widths[-1]}, but arch_sparse_feature_size is "
                    f"{self.arch_sparse_feature_size}; with arch_interaction_op dot they must be "
                    "equal",
                )
            case "mtwnd" if self.task_widths[0] != self.top_widths[-1]:
                raise ConfigError(
                    "arch_mlp_tasks",
                    f"begins with {self.task_widths[0]}, but arch_mlp_top ends in "
                    f"{self.top_widths[-1]}; they must be equal",
                )
            case "ncf" if n_tables != 4:
                raise ConfigError(
                    "arch_embedding_size", f"names {n_tables} tables; NCF has 4 (mf0-mf1-mlp0-mlp1)"
                )
            case "ncf" if len(self.top_widths) < 2:
                raise ConfigError(
                    "arch_mlp_top",
                    "has one width; NCF needs at least 2 (MLP tower, then the last layer)",
                )
            case "din" | "dien" if n_tables < 4:
                raise ConfigError(
                    "arch_embedding_size",
                    f"names {n_tables} tables; {self.model_type} needs "
                    "profile-behaviours-ad-context",
                )

    @property
    def name(self) -> str:
        """Name for reports and profiles."""
        return self.model_name or self.model_type

    @property
    def bot_widths(self) -> tuple[int, ...]:
        """Widths of the bottom MLP, input first."""
        return dashed("arch_mlp_bot", self.arch_mlp_bot)

    @property
    def top_widths(self) -> tuple[int, ...]:
        """Widths of the top MLP's layers, without its input."""
        return dashed("arch_mlp_top", self.arch_mlp_top)

    @property
    def task_widths(self) -> tuple[int, ...]:
        """Widths of a task's MLP, input first."""
        return dashed("arch_mlp_tasks", self.arch_mlp_tasks)

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of every table, DIN's behaviour table repeated, after `table_scale`."""
        rows = dashed("arch_embedding_size", self.arch_embedding_size)
        if self.model_type == "din" and len(rows) == 4:
            rows = (rows[0], *(rows[1],) * self.user_behavior_tables, *rows[2:])
        return tuple(
            min(n, max(round(n * self.table_scale), self.num_indices_per_lookup)) for n in rows
        )

    @property
    def dense_width(self) -> int:
        """Dense features per item that the net reads (0: none)."""
        return self.bot_widths[0] if self.model_type in ("dlrm", "wnd", "mtwnd") else 0

    @property
    def table_bytes(self) -> int:
        """Size of all tables in memory, float32."""
        return sum(self.table_rows) * self.arch_sparse_feature_size * 4
