-- Returns a room's head. Begins a new epoch if the room is unknown, if its offsets are of another fence, or if its meta
-- cannot be read.
-- KEYS: meta, stream
-- ARGV: fence, epoch for a new beginning, meta ttl ms
-- Returns the epoch, then the offset.
local m = redis.call('HMGET', KEYS[1], 'g', 'e', 's')
local epoch, offset = m[2] or '', m[3] or ''
local is_readable = #epoch == 8 and not string.find(epoch, '[^%w_-]') and string.find(offset, '^%d+$')
if m[1] ~= ARGV[1] or not is_readable or tonumber(offset) > OFFSET_MAX then
  epoch, offset = begin(KEYS[1], KEYS[2], ARGV[1], ARGV[2]), '0'
end
-- Renewed once per half of the ttl, not with every join. A Redis that takes no writes at present can still be read.
if redis.call('PTTL', KEYS[1]) < ARGV[3] / 2 then redis.pcall('PEXPIRE', KEYS[1], ARGV[3]) end
return epoch .. offset
