-- Sends a message of a room without history, unless its idempotency key has been used before.
-- KEYS: idempotency
-- ARGV: channel, message, idempotency ttl ms
-- Returns "+" for a new message, "=" for a repeated one.
if not redis.call('SET', KEYS[1], '', 'NX', 'PX', ARGV[3]) then return '=' end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return '+'
