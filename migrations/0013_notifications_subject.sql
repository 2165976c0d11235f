-- no-transaction
-- Finds the notifications that an event settles. A mark changes no key, so it stays in place (HOT).
create index concurrently if not exists notifications_subject on notifications (subject_key) where subject_key is not null;
