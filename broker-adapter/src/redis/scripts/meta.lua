-- What the scripts about a room's head share; it stands before each of them. The meta has the fence (g), the epoch (e)
-- and the last offset (s).

-- Begins a new epoch without messages, so that no offset is used twice.
local function begin(meta, stream, fence, epoch)
  redis.call('DEL', meta, stream)
  redis.call('HSET', meta, 'g', fence, 'e', epoch, 's', 0)
  return epoch
end

-- The largest last offset: Lua rounds numbers to 14 digits when it writes them.
local OFFSET_MAX = 1e13

