"""Alembic's entry: runs our migrations on the connection that ``storage.database`` hands over."""

from alembic import context

from storage.tables import Base

VERSION_TABLE = "mergefront_alembic_version"  # Optuna keeps its own in alembic_version

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
