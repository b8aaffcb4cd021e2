"""The first tables: studies, checkpoints, evaluations, marks, failures, exports."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _study_id(*, index: bool = False) -> sa.Column[int]:
    key = sa.ForeignKey("mergefront_study.id", ondelete="CASCADE")
    return sa.Column("study_id", sa.Integer, key, nullable=False, index=index)


def upgrade() -> None:
    """Make the six tables."""
    op.create_table(
        "mergefront_study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_digest", sa.String(64), nullable=False),
        sa.Column("space_digest", sa.String(64), nullable=False),
        sa.Column("planned", sa.Integer, nullable=False),
        sa.Column("versions", sa.JSON, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "mergefront_checkpoint",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.UniqueConstraint("study_id", "name", name="uq_mergefront_checkpoint_study_id_name"),
    )
    op.create_table(
        "mergefront_evaluation",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("recipe_digest", sa.String(64), nullable=False, index=True),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("breakdown", sa.JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("seconds", sa.JSON, nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.UniqueConstraint("study_id", "number", "split", name="uq_mergefront_evaluation_study_id_number_split"),
    )
    op.create_table(
        "mergefront_marks",
        sa.Column(
            "evaluation_id",
            sa.Integer,
            sa.ForeignKey("mergefront_evaluation.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("suite", sa.String(300), primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "mergefront_failure",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(index=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("traceback", sa.Text, nullable=False),
        sa.Column("worker", sa.String(200), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "mergefront_export",
        sa.Column("id", sa.Integer, primary_key=True),
        _study_id(index=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
