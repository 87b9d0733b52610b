-- Writes a placement, if `leader` has the lease and the epoch is above that of the placement which is there. Answers
-- whether it was written. What is no placement is replaced.
local lease, key = KEYS[1], KEYS[2]
local leader, epoch, body = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if redis.call('GET', lease) ~= leader then return 0 end
if redis.call('TYPE', key).ok == 'hash' then
  local before = tonumber(redis.call('HGET', key, 'epoch') or '')
  if before and before >= epoch then return 0 end
end
redis.call('DEL', key)
redis.call('HSET', key, 'epoch', ARGV[2], 'body', body)
return 1
