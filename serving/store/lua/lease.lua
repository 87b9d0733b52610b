-- Takes or drops a lease on a digest. Any number of uploads share a digest; 'gc' needs it alone. The key is a sorted set
-- of holders by the second in which their lease ends. Answers 1 if the lease was taken or dropped, else 0.
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
