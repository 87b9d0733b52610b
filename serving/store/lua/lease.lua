-- Uploads share a digest; gc wants it alone. Members are holders, scores the second their lease runs out.
local key = KEYS[1]
local action, holder, seconds = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = tonumber(redis.call('TIME')[1])

if action == 'drop' then return redis.call('ZREM', key, holder) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
if redis.call('ZSCORE', key, 'gc') then return 0 end
if holder == 'gc' and redis.call('ZCARD', key) > 0 then return 0 end
redis.call('ZADD', key, now + seconds, holder)
redis.call('EXPIRE', key, math.ceil(seconds) + 1)
return 1
