-- Jobs, newest first. ARGV: owner ('' for all), most, before ('' for none), states.
local owner, most, before = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local top = before == '' and '+inf' or ('(' .. before)
local all = {}
for place = 4, #ARGV do
    local key = Q .. 'in:' .. ARGV[place]
    if owner ~= '' then key = key .. ':' .. owner end
    local some = redis.call('ZREVRANGEBYSCORE', key, top, '-inf', 'WITHSCORES', 'LIMIT', 0, most)
    for at = 1, #some, 2 do all[#all + 1] = { some[at], tonumber(some[at + 1]) } end
end
table.sort(all, function(a, b) return a[2] > b[2] end)
local jobs = {}
for place = 1, math.min(#all, most) do
    jobs[place] = redis.call('HMGET', Q .. 'job:' .. all[place][1], 'v', 'n', 't', 'r')
end
return jobs
