-- Records that a person confirmed what the store holds. Answers the revision.
local name, who = ARGV[1], ARGV[2]
local made = made_before()
if made then return made end
for i = 3, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end
return record({unpack(KEYS, 2)}, name, who, {{ action = 'adopt-store', alias = '', digest = '', previous = '' }})
