-- Removes members of one owner whose time is over, and announces that they left. Others, which were renewed or have
-- another owner now, stay.
-- KEYS: the owner's members in the partition, rooms of the partition, then for each member: sessions, users
-- ARGV: owner (8 bytes), which are over (all|ended), head of left, envelope tail without the author, first version, then
--       for each member: session, room, channel
-- Returns how many have left; the error, if Redis has refused to remove one of them.
local own, rooms, owner = KEYS[1], KEYS[2], ARGV[1]
local over = ARGV[2] == 'all' and math.huge or now_ms()
local left, refused = 0, nil

local function sweep(i)
  local sessions, users = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local session, room, channel = ARGV[3 * i + 3], ARGV[3 * i + 4], ARGV[3 * i + 5]
  local ends = redis.call('ZSCORE', own, session .. room)
  if not ends or tonumber(ends) > over then return end
  local entry = redis.call('HGET', sessions, session)
  if entry and owner_of(entry) == owner then
    remove(sessions, users, session, entry, ARGV[5], channel, ARGV[3], ARGV[4] .. session)
    left = left + 1
  end
  forget_if_empty(sessions, users, rooms, room)
  -- Last, so that a member at which the script fails is tried again.
  redis.call('ZREM', own, session .. room)
end

-- A member that Redis refuses to remove must not keep the others.
for i = 1, (#KEYS - 2) / 2 do
  local is_swept, why = pcall(sweep, i)
  if not is_swept then refused = why end
end
if refused then return { err = refused } end
return left
