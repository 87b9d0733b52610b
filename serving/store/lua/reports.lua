-- Answers the time of this server, and what each replica reported. Drops reports older than `seconds`, and what has no
-- time in front.
local seconds = tonumber(ARGV[1])
local now = redis.call('TIME')
now = now[1] .. '.' .. string.format('%06d', now[2])
local answer, rows = {now}, redis.call('HGETALL', KEYS[1])
for i = 1, #rows, 2 do
  local reported = tonumber(string.match(rows[i + 1], '^%S+') or '')
  if not reported or tonumber(now) - reported > seconds then
    redis.call('HDEL', KEYS[1], rows[i])
  else
    answer[#answer + 1], answer[#answer + 2] = rows[i], rows[i + 1]
  end
end
return answer
