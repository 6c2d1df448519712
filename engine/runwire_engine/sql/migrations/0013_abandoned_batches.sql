-- Batches that still wait for items, by when something last happened to them: the sweep gives up those
-- whose client is gone.
create index batches_unsealed on runwire.batches (updated_at) where not sealed;
