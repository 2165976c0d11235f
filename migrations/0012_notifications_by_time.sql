-- no-transaction
-- Finds the rows of the last minutes without a look at all the others. Rows are stored in the order of created_at, so a range
-- of pages needs one entry, and an append costs no more; autosummarize adds the entry when the range is full. Concurrently,
-- because the build reads the whole table. A build that failed leaves an invalid index, which `shopbell migrate` drops first.
create index concurrently notifications_created_at on notifications using brin (created_at) with (autosummarize = on)
