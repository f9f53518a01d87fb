-- Sends a message of a room without history, unless its idempotency key has been used before. A message that Redis
-- refuses to send has not used its key.
-- KEYS: idempotency
-- ARGV: channel, message, idempotency ttl ms
-- Returns "+" for a new message, "=" for a repeated one.
if not redis.call('SET', KEYS[1], '', 'NX', 'PX', ARGV[3]) then return '=' end
local reply = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
if type(reply) == 'table' then
  redis.call('DEL', KEYS[1])
  return reply
end
return '+'
