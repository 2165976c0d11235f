-- no-transaction
-- Finds the orders with a subject of their own that an event settles by their order_id.
create index concurrently if not exists notifications_order on notifications (order_key) where order_key is not null;
