-- Writes a placement, if `leader` has the lease and the epoch is above that of the placement which is there. Without an
-- epoch, removes whatever is there. Answers whether that was done. What is no placement is replaced.
local lease, key = KEYS[1], KEYS[2]
local leader, epoch, body = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if redis.call('GET', lease) ~= leader then return 0 end
if epoch and redis.call('TYPE', key).ok == 'hash' then
  local before = tonumber(redis.call('HGET', key, 'epoch') or '')
  if before and before >= epoch then return 0 end
end
redis.call('DEL', key)
if epoch then redis.call('HSET', key, 'epoch', ARGV[2], 'body', body) end
return 1
