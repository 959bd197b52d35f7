"""What FORMAT.md says must be rejected: for each line of its table, stores in which it is wrong."""

from tests.kit.page_rules import in_arrays, in_descriptions, in_shards, in_text

#: Line of the table -> name -> case.
READING = in_descriptions.READING | in_shards.READING | in_arrays.READING | in_text.READING
VERIFYING = in_descriptions.VERIFYING | in_shards.VERIFYING | in_arrays.VERIFYING
VERIFYING |= in_text.VERIFYING
NOBODY = in_shards.NOBODY | in_arrays.NOBODY
