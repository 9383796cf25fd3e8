-- What happens to documents is usage: that one arrives, that it becomes processed, and what it stores. Tables of your own are metered in
-- the same way, by a file of yours.
do $$
begin
  perform metering.meter_table('app.documents', resource => 'document', created => 'doc.upload', updated => null, deleted => null,
    becomes => '{"status": {"processed": "doc.processed"}}', storage_column => 'size_bytes');
end
$$;
