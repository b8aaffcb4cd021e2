"""Who drives a study, what is known of it beside its spec, trials that ended early, judges' verdicts, report sets."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and tables; rows that are there keep what they say."""
    op.add_column("mergefront_study", sa.Column("notes", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("mergefront_study", sa.Column("holder", sa.Text))
    op.add_column("mergefront_study", sa.Column("token", sa.String(32)))
    op.add_column("mergefront_study", sa.Column("held_until", sa.Double))
    op.add_column("mergefront_evaluation", sa.Column("stopped", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "mergefront_verdict",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("verdict", sa.JSON, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "mergefront_report_use",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("items", sa.String(64), nullable=False, index=True),
        sa.Column("study", sa.String(200), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
