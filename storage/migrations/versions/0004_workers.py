"""What each worker of a study does."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; nobody knows yet what they do."""
    op.add_column("mergefront_study", sa.Column("workers", sa.JSON, nullable=False, server_default="[]"))
